//go:build race

package authz

func init() { Share = 4 } // the race detector makes them slow, and has nothing to see: `make test` makes all without it
