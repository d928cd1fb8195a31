//go:build race

package validate

// slower is how many times as long a program may take whose memory accesses are watched.
const slower = 10
