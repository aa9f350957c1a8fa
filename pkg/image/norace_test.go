//go:build !race

package image_test

// raceDetector is off.
const raceDetector = false
