//go:build race

package kernel

// underRace tells that Go code runs ten times slower: tests that compare with it draw fewer numbers.
const underRace = true
