package device

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestSystemZones(t *testing.T) {
	dir := t.TempDir()
	link, name, none := filepath.Join(dir, "localtime"), filepath.Join(dir, "timezone"), filepath.Join(dir, "none")
	must(t, os.Symlink("../usr/share/zoneinfo/America/New_York", link))
	must(t, os.WriteFile(name, []byte("Asia/Tokyo\n"), 0o600))
	for _, c := range []struct{ tz, localtime, timezone, want string }{
		{":Europe/Paris", link, name, "[Europe/Paris]"},
		{"", link, name, "[America/New_York Asia/Tokyo]"},
		{"", name, name, "[Asia/Tokyo]"},
		{"", none, none, "[]"},
	} {
		if got := fmt.Sprint(systemZones(c.tz, c.localtime, c.timezone)); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

func TestConfiguredZone(t *testing.T) {
	t.Setenv("TZ", "Asia/Tokyo")
	for in, want := range map[string]string{"": "Asia/Tokyo", "Europe/Berlin": "Europe/Berlin", "UTC": "UTC"} {
		if loc, err := (Settings{Timezone: in}).zone(); err != nil || loc.String() != want {
			t.Errorf("%q: %s, %v", in, loc, err)
		}
	}
	for _, bad := range []string{"Mars/Olympus", "Local", "../etc/passwd"} {
		if _, err := (Settings{Timezone: bad}).zone(); err == nil || !strings.Contains(err.Error(), "zone database") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	t.Setenv("TZ", "nonsense")
	if loc, err := (Settings{}).zone(); err != nil || loc != time.Local {
		t.Errorf("%s, %v", loc, err)
	}
}
