//go:build !race

package sim

// usual is how many seeds a test run lives through.
const usual = 2000
