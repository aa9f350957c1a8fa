//go:build !race

package signing

// stride 1: the exhaustive tests leave nothing out.
const stride = 1
