//go:build !race

package registry

// raceEnabled: see race_test.go.
const raceEnabled = false
