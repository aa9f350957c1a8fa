package device

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"
	_ "time/tzdata" // small systems have no zone files
)

// Where a Linux system says its zone.
const (
	localtimePath = "/etc/localtime" // a link into a folder zoneinfo
	timezonePath  = "/etc/timezone"  // its name, on Debian
	zoneFolder    = "zoneinfo/"
	maxZoneName   = 256
)

// zone is that of the device's wall clock: the configured one, or the system's.
// It has its name in the zone database where that can be found out.
func (s Settings) zone() (*time.Location, error) {
	if s.Timezone != "" {
		loc, err := time.LoadLocation(s.Timezone)
		if err != nil || s.Timezone == "Local" {
			return nil, fmt.Errorf("timezone %q in %s: want a name of the zone database, such as Europe/Berlin", s.Timezone, settingsName)
		}
		return loc, nil
	}
	for _, name := range systemZones(os.Getenv("TZ"), localtimePath, timezonePath) {
		if loc, err := time.LoadLocation(name); err == nil {
			return loc, nil
		}
	}
	return time.Local, nil
}

// systemZones are the names that the system may have for its zone.
func systemZones(tz, localtime, timezone string) []string {
	if tz != "" {
		return []string{strings.TrimPrefix(tz, ":")}
	}
	var names []string
	if target, err := os.Readlink(localtime); err == nil {
		if _, name, ok := strings.Cut(target, zoneFolder); ok {
			names = append(names, name)
		}
	}
	if b, err := os.ReadFile(timezone); err == nil && len(b) <= maxZoneName {
		if name := strings.TrimSpace(string(b)); name != "" {
			names = append(names, name)
		}
	}
	return names
}

// built is when this program's source was committed; zero when it does not say.
func built() time.Time {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return time.Time{}
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.time" {
			t, _ := time.Parse(time.RFC3339, s.Value)
			return t
		}
	}
	return time.Time{}
}
