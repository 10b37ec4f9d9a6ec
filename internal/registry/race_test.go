//go:build race

package registry

// raceEnabled: the race detector makes everything ten times slower, so that long simulations are cut short.
const raceEnabled = true
