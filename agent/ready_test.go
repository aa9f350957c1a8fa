package agent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/agent/disk/disktest"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/signing"
)

// TestHold: an execution of a paused rollout waits before the new slot is
// activated, and goes on when told.
func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRepo(t)
		old, img := noise(1, 5000), noise(2, 20_000)
		r.release("1.0", img, nil)
		d := inBerlin(t, r, old)
		r.order("job-1", "1.0", 1)
		r.edit(func(d *ota.JobDocument) { d.Hold = true })
		stop := d.start(t)
		r.pass(72 * time.Hour)
		told := []string{"fetching", "staged", "IN_PROGRESS waiting: rollout paused"}
		expectTold(t, r, "job-1", told...)
		r.edit(func(d *ota.JobDocument) { d.Hold = false })
		elapse(time.Second) // woken, not polled
		expectTold(t, r, "job-1", append(told, "rebooting", "trial", "committing", "SUCCEEDED")...)
		stop()
	})
}

// given up asserts that the job changed nothing that runs, and that the agent
// takes the next one.
func givenUp(t *testing.T, r *repo, d *device, old []byte) {
	t.Helper()
	if v := r.verdicts("job-1", 1); len(v) > 0 {
		t.Fatalf("a verdict on a cancelled job: %+v", v)
	}
	if d.running().Digest != digest(old) {
		t.Fatal("a cancelled job was installed")
	}
	r.order("job-2", "1.0", 1)
	expect(t, d.until("job-2", 1), ota.Succeeded, "")
}

// TestCanceledAtEveryStep: until the server has stored that the new slot is
// activated, an execution that it cancels stops.
func TestCanceledAtEveryStep(t *testing.T) {
	old := noise(1, 5000)
	cases := map[string]func(*repo){
		"while the window is shut": func(r *repo) {
			r.edit(windowed("FREQ=YEARLY;BYMONTH=6;BYMONTHDAY=1;BYHOUR=2 for 3h"))
			r.onStep = map[string]func(){"waiting": r.cancelAndTell}
		},
		"while the metadata is verified": func(r *repo) {
			r.twist = func(name string, b []byte) []byte {
				if name == "2.targets.json" {
					r.cancelLocked()
				}
				return b
			}
		},
		"while the server's files do not verify": func(r *repo) {
			n := 0
			r.twist = func(name string, b []byte) []byte {
				if name == "timestamp.json" {
					if n++; n == 2 {
						r.cancelAndTell()
					}
					if r.job == nil || r.job.ID == "job-1" {
						b[len(b)/2] ^= 1
					}
				}
				return b
			}
		},
		"when the download begins": func(r *repo) { r.onStep = map[string]func(){"fetching": r.cancelAndTell} },
		"during the download": func(r *repo) {
			r.chop = 3000
			r.twist = func(name string, b []byte) []byte {
				if name == "image" && len(r.opened) == 3 {
					r.cancelLocked()
				}
				return b
			}
		},
		"when it is staged": func(r *repo) { r.onStep = map[string]func(){"staged": r.cancelAndTell} },
		"while it is held": func(r *repo) {
			r.edit(func(d *ota.JobDocument) { d.Hold = true })
			r.onStep = map[string]func(){"waiting": r.cancelAndTell}
		},
		"when it is announced": func(r *repo) {
			r.announcing = func() error { r.cancelLocked(); return nil }
		},
		"silently": func(r *repo) { // no word of it arrives, but by the answers
			r.onStep = map[string]func(){"staged": r.cancelLocked}
		},
	}
	for name, arrange := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRepo(t)
				r.release("1.0", noise(2, 20_000), nil)
				d := inBerlin(t, r, old)
				r.order("job-1", "1.0", 1)
				arrange(r)
				stop := d.start(t)
				time.Sleep(24 * time.Hour)
				synctest.Wait()
				if r.job != nil {
					t.Fatalf("it was not cancelled: %s", r.told("job-1"))
				}
				stop()
				r.set(func() { r.announcing, r.twist, r.chop = nil, nil, 0 })
				givenUp(t, r, d, old)
			})
		})
	}
}

// cancelLocked is cancel for whoever holds the lock, and tells nobody.
func (r *repo) cancelLocked() {
	if r.job != nil && r.job.ID == "job-1" {
		r.over[keyOf(r.job.ID, r.job.Attempt)], r.job = ota.Canceled, nil
	}
}

func (r *repo) cancelAndTell() {
	r.cancelLocked()
	r.nudge()
}

// TestCanceledAtEveryOperation cancels the job at every operation on the disk: it
// is installed if its activation was announced before, and only then; after that
// it finishes.
func TestCanceledAtEveryOperation(t *testing.T) {
	old, img := noise(1, 5000), noise(2, 20_000)
	stride := 3
	if raceEnabled {
		stride = 13
	}
	if os.Getenv(soak) != "" {
		stride = 1
	}
	installed, stopped := 0, 0
	for at := 1; ; at += stride {
		done := false
		synctest.Test(t, func(t *testing.T) {
			r := newRepo(t)
			r.release("1.0", img, nil)
			d := inBerlin(t, r, old)
			n, before := 0, false
			d.fs.(*disktest.Mem).Log = func(string) {
				if n++; n == at {
					r.set(func() { before = r.announced })
					r.cancel()
				}
			}
			r.order("job-1", "1.0", 1)
			stop := d.start(t)
			time.Sleep(24 * time.Hour)
			stop()
			switch {
			case n < at:
				done = true
			case before != (d.running().Digest == digest(img)) || before != r.announced:
				t.Fatalf("operation %d: announced before %v, at all %v, running %.8s", at, before, r.announced, d.running().Digest)
			case before:
				installed++
			default:
				stopped++
			}
		})
		if done {
			break
		}
	}
	if installed == 0 || stopped == 0 {
		t.Fatalf("%d installed, %d stopped", installed, stopped)
	}
	t.Logf("%d cancelled before the activation was announced, all stopped; %d after, all finished", stopped, installed)
}

// TestServerMustKnowBeforeTheActivation: without its word nothing is armed, for
// however long it is away.
func TestServerMustKnowBeforeTheActivation(t *testing.T) {
	for name, arrange := range map[string]func(*repo){
		"away":               func(r *repo) { r.announcing = func() error { r.offline = true; return nil } },
		"its answer is lost": func(r *repo) { r.loseAnnounce = 3 },
		"changed": func(r *repo) {
			n := 0
			r.announcing = func() error {
				if n++; n < 4 {
					r.job.Version++
				}
				return nil
			}
		},
		"holds back": func(r *repo) {
			n := 0
			r.announcing = func() error {
				if n++; n < 4 {
					return agent.ErrHeld
				}
				return nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRepo(t)
				old, img := noise(1, 5000), noise(2, 20_000)
				r.release("1.0", img, nil)
				d := inBerlin(t, r, old)
				r.order("job-1", "1.0", 1)
				arrange(r)
				stop := d.start(t)
				r.pass(72 * time.Hour)
				if name == "away" {
					if d.running().Digest != digest(old) {
						t.Fatal("armed without the server")
					}
					r.set(func() { r.offline, r.announcing = false, nil })
					time.Sleep(time.Hour)
					synctest.Wait()
				}
				stop()
				expect(t, r.verdicts("job-1", 1)[0], ota.Succeeded, "")
				if d.running().Digest != digest(img) {
					t.Error("not installed")
				}
			})
		})
	}
}

// TestSignedAnewWhileItWaits: what the operators signed when the job began does
// not count weeks later.
func TestSignedAnewWhileItWaits(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*repo)
		status ota.Status
		reason string
		runs   bool
	}{
		"the same":   {func(*repo) {}, ota.Succeeded, "", true},
		"taken back": {(*repo).takeBack, ota.Rejected, "unknown target", false},
		"held back":  {func(r *repo) { r.twist = stale(r) }, ota.Rejected, "expired", false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRepo(t)
				old, img := noise(1, 5000), noise(2, 20_000)
				r.release("1.0", img, nil)
				d := inBerlin(t, r, old)
				r.order("job-1", "1.0", 1)
				r.edit(func(d *ota.JobDocument) { d.Hold = true })
				stop := d.start(t)
				r.pass(12 * time.Hour)
				c.change(r)
				r.pass(72 * time.Hour)
				r.edit(func(d *ota.JobDocument) { d.Hold = false })
				r.pass(6 * time.Hour)
				stop()
				expect(t, r.verdicts("job-1", 1)[0], c.status, c.reason)
				if runs := d.running().Digest == digest(img); runs != c.runs {
					t.Errorf("runs the new image: %v", runs)
				}
			})
		})
	}
}

// takeBack signs the targets without the release.
func (r *repo) takeBack() {
	r.set(func() {
		var err error
		r.targets, err = signing.RemoveTarget(r.targets, "gateway/1.0.idx", r.now.Add(1000*time.Hour), r.operator)
		must(r.tb, err)
		r.publish()
	})
}

// stale keeps handing out the timestamp of now.
func stale(r *repo) func(string, []byte) []byte {
	stamp := bytes.Clone(r.stamp)
	return func(name string, b []byte) []byte {
		if name == "timestamp.json" {
			return stamp
		}
		return b
	}
}

// asker is people who answer from a list, and then agree.
type asker struct {
	answers []agent.Answer
	err     error
	asked   []agent.Question
	at      []time.Duration
	since   time.Time
}

func (a *asker) Ask(_ context.Context, q agent.Question) (agent.Answer, error) {
	a.asked, a.at = append(a.asked, q), append(a.at, time.Since(a.since))
	if a.err != nil {
		return agent.Answer{}, a.err
	}
	if n := len(a.asked); n <= len(a.answers) {
		return a.answers[n-1], nil
	}
	return agent.Answer{Granted: true}, nil
}

// TestConsent: people put an activation off as often as the document lets them.
func TestConsent(t *testing.T) {
	later := agent.Answer{Defer: 2 * time.Hour}
	begin := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		consent *ota.Consent
		asker   asker
		asked   []int // hours after the start
		status  ota.Status
		reason  string
		told    []string
	}{
		"at once":                     {nil, asker{}, []int{0}, ota.Succeeded, "", []string{"asking the user"}},
		"put off twice":               {&ota.Consent{MaxDefers: 5}, asker{answers: []agent.Answer{later, later}}, []int{0, 2, 4}, ota.Succeeded, "", []string{"asking the user", "deferred by the user until 2000-01-01T03:00+01:00", "asking the user", "deferred by the user until 2000-01-01T05:00+01:00", "asking the user"}},
		"as often as it may":          {&ota.Consent{MaxDefers: 2}, asker{answers: []agent.Answer{later, later, later}}, []int{0, 2}, ota.Succeeded, "", []string{"asking the user", "deferred by the user until 2000-01-01T03:00+01:00", "asking the user", "deferred by the user until 2000-01-01T05:00+01:00"}},
		"not at all":                  {&ota.Consent{}, asker{}, nil, ota.Succeeded, "", nil},
		"until the deadline":          {&ota.Consent{MaxDefers: 9, Deadline: begin.Add(3 * time.Hour)}, asker{answers: []agent.Answer{later, later}}, []int{0, 2}, ota.Succeeded, "", []string{"asking the user", "deferred by the user until 2000-01-01T03:00+01:00", "asking the user", "deferred by the user until 2000-01-01T04:00+01:00"}},
		"after the deadline":          {&ota.Consent{MaxDefers: 9, Deadline: begin}, asker{}, nil, ota.Succeeded, "", nil},
		"refused":                     {nil, asker{answers: []agent.Answer{{Refused: "not this machine"}}}, []int{0}, ota.Rejected, "refused by the user: not this machine", []string{"asking the user"}},
		"an hour, if they do not say": {&ota.Consent{MaxDefers: 1}, asker{answers: []agent.Answer{{}}}, []int{0}, ota.Succeeded, "", []string{"asking the user", "deferred by the user until 2000-01-01T02:00+01:00"}},
		"no answer":                   {&ota.Consent{MaxDefers: 2}, asker{err: errors.New("no such program")}, []int{0, 1}, ota.Succeeded, "", []string{"asking the user", "deferred by the user until 2000-01-01T02:00+01:00", "asking the user", "deferred by the user until 2000-01-01T03:00+01:00"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRepo(t)
				old, img := noise(1, 5000), noise(2, 20_000)
				r.release("1.0", img, nil)
				d := inBerlin(t, r, old)
				people := c.asker
				people.since = time.Now()
				edit := d.edit
				d.edit = func(cfg *agent.Config) { edit(cfg); cfg.Asker = &people }
				r.order("job-1", "1.0", 1)
				r.edit(func(d *ota.JobDocument) { d.Consent, d.Notes = c.consent, "faster" })
				stop := d.start(t)
				time.Sleep(24 * time.Hour)
				stop()
				var asked []int
				for _, at := range people.at {
					asked = append(asked, int(at.Hours()))
				}
				if fmt.Sprint(asked) != fmt.Sprint(c.asked) {
					t.Errorf("asked after %v, want %v h", people.at, c.asked)
				}
				for i, q := range people.asked {
					want := ota.DefaultConsent
					if c.consent != nil {
						want = *c.consent
					}
					if q.Release.String() != "gateway@1.0" || q.Notes != "faster" || q.Left != want.MaxDefers-i || !q.Deadline.Equal(want.Deadline) {
						t.Errorf("asked %+v", q)
					}
				}
				expect(t, r.verdicts("job-1", 1)[0], c.status, c.reason)
				want := []string{"fetching", "staged"}
				for _, w := range c.told {
					want = append(want, "IN_PROGRESS waiting: "+w)
				}
				if c.status == ota.Succeeded {
					want = append(want, "rebooting", "trial", "committing")
				}
				expectTold(t, r, "job-1", append(want, string(c.status))...)
				if installed := d.running().Digest == digest(img); installed != (c.status == ota.Succeeded) {
					t.Errorf("installed: %v", installed)
				}
			})
		})
	}
}

// TestConsentOutlivesARestart: what people said is not asked for again, and the
// number of deferrals is told.
func TestConsentOutlivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRepo(t)
		r.release("1.0", noise(2, 20_000), nil)
		d := inBerlin(t, r, noise(1, 5000))
		people := asker{answers: []agent.Answer{{Defer: 5 * time.Hour}}, since: time.Now()}
		edit := d.edit
		d.edit = func(cfg *agent.Config) { edit(cfg); cfg.Asker = &people }
		r.order("job-1", "1.0", 1)
		for range 4 {
			stop := d.start(t)
			time.Sleep(time.Hour)
			stop()
		}
		if len(people.asked) != 1 {
			t.Fatalf("asked %d times", len(people.asked))
		}
		if last := r.reports[len(r.reports)-1]; last.Details["deferrals"] != "1" {
			t.Errorf("%+v", last)
		}
		// They agree, and then the rollout is paused over a restart.
		r.edit(func(d *ota.JobDocument) { d.Hold = true })
		stop := d.start(t)
		time.Sleep(2 * time.Hour)
		stop()
		r.edit(func(d *ota.JobDocument) { d.Hold = false })
		r.announcing = func() error { r.offline = true; return nil }
		stop = d.start(t)
		time.Sleep(2 * time.Hour)
		stop()
		r.offline, r.announcing = false, nil
		stop = d.start(t)
		time.Sleep(time.Hour)
		stop()
		expect(t, r.verdicts("job-1", 1)[0], ota.Succeeded, "")
		if len(people.asked) != 2 || people.asked[1].Left != ota.DefaultConsent.MaxDefers-1 {
			t.Errorf("asked %+v", people.asked)
		}
	})
}
