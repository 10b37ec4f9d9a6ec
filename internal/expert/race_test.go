//go:build race

package expert_test

// raceEnabled: under the race detector pools drop a part of what they are given.
const raceEnabled = true
