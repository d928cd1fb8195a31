//go:build race

package relay

func init() { *worlds = 200 } // the race detector makes them slow, and has nothing to see: `make test` tries all without it
