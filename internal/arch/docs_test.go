package arch

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

var (
	named    = regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z][A-Za-z0-9]*)")
	declared = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)[A-Z][A-Za-z0-9]*)\(`)
)

// files calls f for each file of the project with that ending.
func files(t *testing.T, ending string, f func(path, text string)) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".cache" || d.Name() == ".git" || d.Name() == "node_modules"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ending):
			return nil
		}
		raw, err := os.ReadFile(path)
		if err == nil {
			f(path, string(raw))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestDocsNameTestsThatExist: what a document calls proven by a test is.
func TestDocsNameTestsThatExist(t *testing.T) {
	exist := map[string]bool{}
	files(t, "_test.go", func(_, text string) {
		for _, m := range declared.FindAllStringSubmatch(text, -1) {
			exist[m[1]] = true
		}
	})
	found := 0
	files(t, ".md", func(path, text string) {
		for _, m := range named.FindAllStringSubmatch(text, -1) {
			found++
			if !exist[m[1]] {
				t.Errorf("%s names %s, which is nowhere", path, m[1])
			}
		}
	})
	if found < 40 {
		t.Errorf("only %d tests are named", found)
	}
}
