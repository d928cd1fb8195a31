//go:build !race

package validate

const slower = 1
