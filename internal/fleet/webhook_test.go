package fleet

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/pkg/ota"
)

// TestEventTypes: every state has a type, a kind stands for all of its own, and
// what drifted has one to itself.
func TestEventTypes(t *testing.T) {
	types := EventTypes()
	if want := 5 + len(ota.RolloutStates) + len(ota.StageStates) + len(ota.Statuses) + 1; len(types) != want {
		t.Errorf("%d types, want %d", len(types), want)
	}
	drifted := ota.Event{Kind: ota.EventExecution, To: "SUCCEEDED", Class: ota.ClassDrifted}
	for _, c := range []struct {
		e    ota.Event
		want string
	}{
		{ota.Event{Kind: ota.EventRollout, To: "ROLLING_BACK"}, "rollout.rolling_back"},
		{ota.Event{Kind: ota.EventStage, To: "PASSED"}, "stage.passed"},
		{ota.Event{Kind: ota.EventExecution, To: "TIMED_OUT", Class: ota.ClassSilent}, "execution.timed_out"},
		{drifted, "execution.drifted"},
	} {
		got := EventType(c.e)
		if got != c.want || !slices.Contains(types, got) {
			t.Errorf("type of %+v: %s, want %s", c.e, got, c.want)
		}
		kind := string(c.e.Kind)
		for filter, want := range map[string]bool{"": true, kind: true, got: true, "rollout.draft": false} {
			var list []string
			if filter != "" {
				list = []string{filter}
			}
			if (Webhook{Types: list}).Wants(c.e) != want {
				t.Errorf("a webhook for %q wants %s: %t", filter, got, !want)
			}
		}
	}
	if (Webhook{Types: []string{"execution.succeeded"}}).Wants(drifted) {
		t.Error("what drifted is told as a success")
	}
	if (Webhook{RolloutID: "r"}).Wants(ota.Event{RolloutID: "q"}) {
		t.Error("an event of another rollout is wanted")
	}
}

// TestRetrySchedule: it begins as Standard Webhooks' example, makes about a day in
// all, and leaves a receiver alone for as long as it asks, within bounds.
func TestRetrySchedule(t *testing.T) {
	var least, most time.Duration
	for n := 1; n < MaxWebhookAttempts; n++ {
		low, high := retryDelay(n, 0, 0), retryDelay(n, 0, 1)
		if low > high || high > MaxRetryDelay+time.Duration(retryJitter*float64(MaxRetryDelay)) {
			t.Errorf("after %d: %s to %s", n, low, high)
		}
		least, most = least+low, most+high
	}
	if least < 22*time.Hour || most > 26*time.Hour {
		t.Errorf("given up after %s to %s", least, most)
	}
	for _, c := range []struct {
		failures    int
		asked, want time.Duration
	}{
		{0, 0, 5 * time.Second}, {1, 0, 5 * time.Second}, {2, 0, 5 * time.Minute}, {3, 0, 30 * time.Minute}, {4, 0, MaxRetryDelay}, {1000, 0, MaxRetryDelay},
		{1, time.Minute, time.Minute}, {2, time.Second, 5 * time.Minute}, {1, 1000 * time.Hour, MaxRetryDelay},
	} {
		if got := retryDelay(c.failures, c.asked, 0); got != c.want {
			t.Errorf("after %d, asked for %s: %s, want %s", c.failures, c.asked, got, c.want)
		}
	}
}

func TestWebhookURL(t *testing.T) {
	for _, text := range []string{"https://example.com/hooks?token=a%20b", "http://127.0.0.1:8080", "https://[2001:db9::1]:8443/x", "https://example.com:65535", "https://example.com:/x"} {
		if _, err := webhookURL(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	long := "https://example.com/" + strings.Repeat("a", MaxWebhookURL-len("https://example.com/"))
	if _, err := webhookURL(long); err != nil {
		t.Errorf("as long as may be: %v", err)
	}
	for _, text := range []string{
		"", "example.com", "ftp://example.com", "https://", "https:///x", "https://:443/", "//example.com", "https://user@example.com", "https://a:b@example.com",
		"https://example.com/#a", "https://example.com/#", "https://exa mple.com", "https://example.com/\n", "https://ex\u00e4mple.com", "https://[::1",
		"https://example.com:0/", "https://example.com:65536", "https://example.com:99999/x", "https://[::1]:70000", long + "a",
	} {
		if _, err := webhookURL(text); !errors.Is(err, ErrInvalid) {
			t.Errorf("%.60s: %v", text, err)
		} else if strings.Contains(err.Error(), "a:b") {
			t.Errorf("the error repeats a password: %v", err)
		}
	}
}

// FuzzWebhookURL: what is taken is a whole address of http or https that holds
// nothing but printable ASCII and no credentials.
func FuzzWebhookURL(f *testing.F) {
	for _, s := range []string{"https://example.com", "http://a:b@c", "https://%zz", "https://[::1]:1/#", "HTTPS://A"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		u, err := webhookURL(text)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		if u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.User != nil || u.Fragment != "" || len(text) > MaxWebhookURL {
			t.Errorf("%q was taken", text)
		}
	})
}

// FuzzWebhookTypes: what is taken is known, in order and once.
func FuzzWebhookTypes(f *testing.F) {
	f.Add("rollout,execution.failed,rollout")
	f.Add("")
	f.Add("execution.*")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := webhookTypes(strings.Split(text, ","))
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		again, err := webhookTypes(list)
		if err != nil || !slices.Equal(again, list) || !slices.IsSorted(list) || len(slices.Compact(slices.Clone(list))) != len(list) {
			t.Errorf("%q: %q, then %q, %v", text, list, again, err)
		}
	})
}

func TestWebhookTypesAreBounded(t *testing.T) {
	if _, err := webhookTypes(EventTypes()); err != nil {
		t.Errorf("all that there are: %v", err)
	}
	if _, err := webhookTypes(make([]string, MaxWebhookTypes+1)); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "at most 32") {
		t.Errorf("too many: %v", err)
	}
}

func TestToldIsBounded(t *testing.T) {
	for text, want := range map[string]string{
		"x":                                 "x",
		"a\x00b\xffc":                       "abc",
		strings.Repeat("a", 500):            strings.Repeat("a", MaxWebhookError),
		strings.Repeat("\u00e4", 500) + "a": strings.Repeat("\u00e4", MaxWebhookError/2),
	} {
		if got := told(errors.New(text)); got != want {
			t.Errorf("%q: %q", text, got)
		}
	}
}
