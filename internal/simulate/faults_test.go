package simulate

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/pkg/ota"
)

func TestDrawsAreTheSameAgainAndSpread(t *testing.T) {
	const devices = 20_000
	bad, wait := 0, time.Duration(0)
	for i := range devices {
		d := draws{seed: 7, id: fmt.Sprint("sim-", i)}
		fails := d.happens(0.3, "bad", "app@1.0")
		if again := (draws{seed: 7, id: d.id}); again.happens(0.3, "bad", "app@1.0") != fails {
			t.Fatal("asked twice, answered differently")
		}
		if fails {
			bad++
		}
		if d.happens(0, "x") || !d.happens(1, "x") {
			t.Fatal("never and always are not kept")
		}
		if a := d.around(time.Second, "trial"); a < time.Second/2 || a >= 3*time.Second/2 {
			t.Fatalf("around a second: %s", a)
		}
		wait += d.exponential(time.Minute, "cut", 1)
	}
	// Five times the standard deviation of what is drawn.
	if want := 0.3 * devices; math.Abs(float64(bad)-want) > 5*math.Sqrt(want*0.7) {
		t.Errorf("%d of %d are bad, want about %.0f", bad, devices, want)
	}
	if mean := wait / devices; (mean - time.Minute).Abs() > time.Duration(5*float64(time.Minute)/math.Sqrt(devices)) {
		t.Errorf("cut after %s on the average, want a minute", mean)
	}
	if (draws{1, "a"}).number("x") == (draws{2, "a"}).number("x") || (draws{1, "a"}).number("x") == (draws{1, "b"}).number("x") {
		t.Error("seed and device do not matter")
	}
}

func TestHealthIsThatOfTheRelease(t *testing.T) {
	fleet := &Fleet{cfg: Config{Faults: Faults{Bad: map[ota.ReleaseID]float64{{Name: "app", Version: "2"}: 1, {Name: "app", Version: "3"}: 0}, BadAny: 1}}}
	d := &device{fleet: fleet, id: "sim-1", draw: draws{1, "sim-1"}}
	for version, well := range map[string]bool{"1": false, "2": false, "3": true} {
		err := health{d, ota.ReleaseID{Name: "app", Version: version}}.Check(context.Background(), nil, agent.Trial{})
		if (err == nil) != well {
			t.Errorf("version %s: %v", version, err)
		}
	}
}

func TestApplicationsCrashAsDrawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := &Fleet{cfg: Config{Faults: Faults{Crash: map[ota.ReleaseID]float64{{Name: "app", Version: "2"}: 1}}}}
		for version, crashes := range map[string]bool{"1": false, "2": true} {
			var seen atomic.Int32
			app := agent.App{Manifest: ota.Manifest{Name: "app", Version: version}, Crashed: func(error) { seen.Add(1) }}
			p, err := installer{&device{fleet: fleet, id: "sim-1", draw: draws{1, "sim-1"}}}.Start(t.Context(), app)
			if err != nil {
				t.Fatal(err)
			}
			wait(t.Context(), time.Minute)
			p.Stop()
			before := seen.Load()
			if wait(t.Context(), time.Minute); seen.Load() != before || crashes && (before < 10 || before > 90) || !crashes && before > 0 {
				t.Errorf("version %s crashed %d times in a minute, and %d after it was stopped", version, before, seen.Load()-before)
			}
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	good := Config{Server: "https://localhost:8444", Token: "t", Hardware: "sim", Devices: 1}
	if err := good.check(); err != nil {
		t.Fatal(err)
	}
	for words, spoil := range map[string]func(*Config){
		"a server and an enrollment token": func(c *Config) { c.Token = "" },
		"0 devices: want 1 to 20000":       func(c *Config) { c.Devices = 0 },
		"20001 devices: want 1 to 20000":   func(c *Config) { c.Devices = MaxDevices + 1 },
		"device id":                        func(c *Config) { c.Prefix = "a/" },
		"hardware model":                   func(c *Config) { c.Hardware = "" },
		"bad share of 101%":                func(c *Config) { c.Faults.BadAny = 1.01 },
		"bad app@1 share of -1%":           func(c *Config) { c.Faults.Bad = map[ota.ReleaseID]float64{{Name: "app", Version: "1"}: -0.01} },
		"crash share of -1%":               func(c *Config) { c.Faults.CrashAny = -0.01 },
		"silent share of NaN%":             func(c *Config) { c.Faults.Silent = math.NaN() },
		"must not be negative":             func(c *Config) { c.Faults.Cut = -time.Second },
	} {
		c := good
		spoil(&c)
		if err := c.check(); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%v, want %q", err, words)
		}
	}
}
