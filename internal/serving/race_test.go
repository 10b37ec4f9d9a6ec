//go:build race

package serving

// raceDetector: sync.Pool forgets some of what it is given when the race detector is on.
const raceDetector = true
