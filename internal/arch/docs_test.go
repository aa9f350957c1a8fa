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

// TestWhatIsSaidBesideOthersIsShown: each row of the table that compares rollouts with those
// of other servers names what shows it, and a case that it names by its words is one.
func TestWhatIsSaidBesideOthersIsShown(t *testing.T) {
	cases := ""
	files(t, ".go", func(path, text string) {
		if strings.Contains(path, "storetest") || strings.HasSuffix(path, "_test.go") {
			cases += text
		}
	})
	raw, err := os.ReadFile(filepath.Join(root, "docs/rollouts.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(raw), "\n## Beside others\n")
	table, _, _ = strings.Cut(table, "\n## ")
	rows := regexp.MustCompile(`(?m)^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|`).FindAllStringSubmatch(table, -1)
	if len(rows) < 20 || strings.Contains(table, "\t") {
		t.Fatalf("the table has %d rows", len(rows))
	}
	words := regexp.MustCompile(`"([^"]+)"`)
	for _, row := range rows {
		if row[3] == "shown by" {
			continue
		}
		said := words.FindAllStringSubmatch(row[3], -1)
		if len(said) == 0 && !named.MatchString(row[3]) {
			t.Errorf("%q is shown by no test: %s", row[1], row[3])
		}
		for _, s := range said {
			if !strings.Contains(cases, `{"`+s[1]+`", func(`) && !strings.Contains(cases, `.Run("`+s[1]+`", `) {
				t.Errorf("%q is shown by %q, which no test is called", row[1], s[1])
			}
		}
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
