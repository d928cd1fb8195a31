//go:build race

package space

func init() { share = 4 } // the race detector makes them slow, and has nothing to see: `make test` makes all without it
