//go:build race

package translate_test

func init() { *sets = 60 } // the race detector makes them slow, and has nothing to see: `make test` has all without it
