//go:build race

package image_test

// raceDetector is on: code is ten times slower and pools forget at random.
const raceDetector = true
