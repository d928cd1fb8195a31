//go:build race

package nodexds

func init() { *worlds = 500 } // the race detector makes them slow, and has nothing to see: `make test` tries all without it
