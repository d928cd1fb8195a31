//go:build !race

package analyze

const slower = 1
