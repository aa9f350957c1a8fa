package main

// spareBytes is how much the heap grows beyond twice what is in use before it is
// collected: a small heap is collected so often that it takes a tenth of a shadow update
// (docs/benchmarks.md). A large one hardly notices, where a GOGC of 200 would cost it
// half as much memory again.
const spareBytes = 12 << 20

// tune has the collector run less often, for as long as what it returns is kept. That
// counts as heap in use and takes no memory, since nobody writes to it. GOGC in the
// environment wins.
func tune(env func(string) string) []byte {
	if env("GOGC") != "" {
		return nil
	}
	return make([]byte, spareBytes)
}
