// Package arch holds the import rules of the project as a test: which folder may
// know which.
package arch

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"strings"
	"testing"
)

const module = "github.com/otad/otad/"

// allowed says what the packages under each folder may import of this module;
// the longest prefix that fits a package counts. What stands nowhere is refused,
// so a new folder has to be entered here.
var allowed = map[string][]string{
	"pkg/shadow":     {},
	"pkg/image":      {},
	"pkg/signing":    {},
	"pkg/selector":   {},
	"pkg/enroll":     {},
	"pkg/health":     {},
	"pkg/sequential": {},
	"pkg/ota":        {"pkg/signing", "pkg/sequential"},

	"agent":         {"pkg/ota", "pkg/signing", "pkg/image"},
	"agent/boot":    {"agent", "pkg/ota"},
	"agent/command": {"agent", "pkg/ota"},
	"agent/disk":    {},
	"agent/health":  {"agent", "pkg/health", "pkg/ota"},
	"agent/http":    {"agent", "pkg/enroll", "pkg/ota", "pkg/signing"},
	"agent/mqtt":    {"agent", "pkg/ota", "pkg/shadow"},
	"agent/device":  {"agent", "pkg/enroll", "pkg/ota", "pkg/signing"},
	"agent/install": {"agent", "pkg/ota"},

	"internal/blob":           {},
	"internal/blob/blobtest":  {"internal/blob"},
	"internal/blob/dir":       {"internal/blob"},
	"internal/blob/s3":        {"internal/blob"},
	"internal/rawimage":       {"pkg/image", "internal/blob"},
	"internal/fleet":          {"pkg", "internal/blob", "internal/rawimage"},
	"internal/store":          {"pkg", "internal/fleet", "internal/store"},
	"internal/identity":       {},
	"internal/mqtt":           {"pkg", "internal/fleet", "internal/mqtt"},
	"internal/mqtt/packet":    {},
	"internal/mqtt/broker":    {"pkg/ota", "internal/mqtt"},
	"internal/mqtt/external":  {"pkg/ota", "internal/mqtt"},
	"internal/mqtt/mosquitto": {},
	"internal/mqtt/emqx":      {},
	"internal/deviceapi":      {"pkg", "internal/fleet", "internal/blob"},
	"internal/api":            {"pkg", "internal/fleet", "internal/blob", "proto"},
	"internal/webhook":        {"internal/fleet"},
	"internal/observability":  {"internal/mqtt", "internal/fleet"},
	"internal/testserver":     {"internal/mqtt/mosquitto"},
	"internal/arch":           {},
	"internal/sim":            {"pkg", "internal/fleet", "internal/store/memstore"},
	"internal/simulate":       {"pkg", "agent"},
	"internal/e2e":            {"internal/testserver"},
	"internal/bench":          {"pkg", "agent", "internal/mqtt", "internal/store/storetest", "internal/testserver"},
	"proto":                   {"proto"},
	"cmd":                     {"pkg", "agent", "internal", "proto"},
}

// agentNever are modules too large for the device binary, or with no place in it.
var agentNever = []string{
	"go.einride.tech/", "modernc.org/", "github.com/spf13/", "github.com/minio/", "connectrpc.com/",
	"github.com/prometheus/", "github.com/coder/",
}

type listed struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func list(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", module+"...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []listed
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// rule returns the imports that pkg may have, by the longest prefix.
func rule(pkg string) (may []string, known bool) {
	best := -1
	for prefix, imports := range allowed {
		if (pkg == prefix || strings.HasPrefix(pkg, prefix+"/")) && len(prefix) > best {
			best, may, known = len(prefix), imports, true
		}
	}
	return may, known
}

func broken(pkg, imported string) string {
	may, known := rule(pkg)
	if !known {
		return pkg + " stands in no rule of internal/arch; enter it"
	}
	if strings.HasPrefix(imported, "cmd/") {
		return pkg + " imports " + imported + ": nobody imports cmd"
	}
	// A test helper lies below what it tests.
	if imported == path.Dir(pkg) && strings.HasSuffix(pkg, "test") {
		return ""
	}
	for _, prefix := range append(may, pkg) {
		if imported == prefix || strings.HasPrefix(imported, prefix+"/") {
			return ""
		}
	}
	return pkg + " must not import " + imported
}

func TestImportsPointInward(t *testing.T) {
	packages := list(t)
	if len(packages) < 10 {
		t.Fatalf("only %d packages listed", len(packages))
	}
	for _, p := range packages {
		pkg := strings.TrimPrefix(p.ImportPath, module)
		for _, i := range p.Imports {
			if !strings.HasPrefix(i, module) {
				continue
			}
			if why := broken(pkg, strings.TrimPrefix(i, module)); why != "" {
				t.Error(why)
			}
		}
	}
}

func TestTheRulesCanBeBroken(t *testing.T) {
	for _, c := range [][2]string{
		{"pkg/ota", "internal/fleet"}, {"agent", "internal/fleet"}, {"internal/fleet", "internal/store/sqlite"},
		{"internal/api", "internal/store/sqlite"}, {"pkg/shadow", "pkg/image"}, {"agent/device", "cmd/otad"}, {"newfolder", "pkg/ota"},
	} {
		if broken(c[0], c[1]) == "" {
			t.Errorf("%s may import %s", c[0], c[1])
		}
	}
}

func TestTheAgentStaysSmall(t *testing.T) {
	for _, p := range list(t) {
		if p.ImportPath != module+"cmd/otagent" && !strings.HasPrefix(p.ImportPath, module+"agent") {
			continue
		}
		for _, d := range p.Deps {
			for _, never := range agentNever {
				if strings.HasPrefix(d, never) {
					t.Errorf("%s depends on %s", p.ImportPath, d)
				}
			}
			if strings.HasPrefix(d, module+"internal/") {
				t.Errorf("%s depends on %s", p.ImportPath, d)
			}
		}
	}
}
