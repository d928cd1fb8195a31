//go:build race

package featuretest

func init() { *steps = 60 } // the race detector makes them slow: `make test` makes all without it
