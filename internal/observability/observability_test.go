package observability_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/observability"
)

func get(t *testing.T, h http.Handler, method, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, nil))
	return w.Code, w.Body.String()
}

func TestLoggerRefusesWhatItDoesNotKnow(t *testing.T) {
	var b bytes.Buffer
	log, err := observability.NewLogger(&b, "json", "warn")
	if err != nil {
		t.Fatal(err)
	}
	log.Info("quiet")
	log.Warn("loud")
	if s := b.String(); strings.Contains(s, "quiet") || !strings.Contains(s, `"msg":"loud"`) {
		t.Errorf("%s", s)
	}
	for _, bad := range [][2]string{{"xml", "info"}, {"", "info"}, {"text", "loud"}} {
		if _, err := observability.NewLogger(&b, bad[0], bad[1]); err == nil || !strings.Contains(err.Error(), "want") {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

func TestDurationsAreReadableInEveryFormat(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		var b bytes.Buffer
		log, err := observability.NewLogger(&b, format, "info")
		if err != nil {
			t.Fatal(err)
		}
		log.With("since", time.Hour).Warn("loud", "wait", 90*time.Second, slog.Group("g", "took", time.Millisecond))
		for _, want := range []string{"1h0m0s", "1m30s", "1ms"} {
			if s := b.String(); !strings.Contains(s, want) {
				t.Errorf("%s: no %s in %s", format, want, s)
			}
		}
	}
}

// TestClientsDoNotMakeLabels: each would be a series for ever.
func TestClientsDoNotMakeLabels(t *testing.T) {
	m := observability.NewMetrics("1.2.3")
	h := m.HTTP("api", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	for _, method := range []string{"GET", "BREW", "PROPFIND"} {
		get(t, h, method, "/one-of-many/"+method)
	}
	reads := 0
	observability.AddFigures(m, func() int { reads++; return 21 }, []observability.Figure[int]{
		{Name: "otad_answer", Help: "Test.", Of: func(n int) float64 { return float64(2 * n) }},
		{Name: "otad_asked_total", Help: "Test.", Total: true, Of: func(int) float64 { return float64(reads) }},
	})
	_, text := get(t, m.Handler(), "GET", "/metrics")
	for _, want := range []string{
		`otad_http_request_seconds_count{method="GET",plane="api",status="418"} 1`, `otad_http_request_seconds_count{method="other",plane="api",status="418"} 2`,
		`otad_build_info{version="1.2.3"} 1`, "otad_answer 42", "# TYPE otad_answer gauge", "otad_asked_total 1", "# TYPE otad_asked_total counter",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s", want)
		}
	}
	if strings.Contains(text, "BREW") || strings.Contains(text, "one-of-many") {
		t.Error("a label that a client made up")
	}
}

// TestStreamsAndDeadlinesGoThrough the counting writer, over a real connection.
func TestStreamsAndDeadlinesGoThrough(t *testing.T) {
	m := observability.NewMetrics("")
	seen := make(chan struct{})
	s := httptest.NewServer(m.HTTP("api", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(w, "first")
		w.(http.Flusher).Flush()
		select {
		case <-seen:
		case <-r.Context().Done():
		}
	})))
	defer s.Close()
	res, err := s.Client().Get(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := io.ReadFull(res.Body, make([]byte, len("first"))); err != nil {
		t.Error(err)
	}
	close(seen)
}

type broker struct {
	err     error
	evicted []mqtt.Eviction
	asked   bool
}

func (b *broker) Subscribe(ctx context.Context, _ []string, h mqtt.Handler) error {
	return h(ctx, mqtt.Message{})
}
func (b *broker) Publish(context.Context, mqtt.Message) error             { return b.err }
func (b *broker) Reply(context.Context, mqtt.Message, mqtt.Message) error { return b.err }
func (b *broker) Close() error                                            { return nil }
func (b *broker) Listening(string) bool                                   { b.asked = true; return true }
func (b *broker) Evict(e mqtt.Eviction)                                   { b.evicted = append(b.evicted, e) }

func TestBrokerIsCountedAndPassedThrough(t *testing.T) {
	m, inner := observability.NewMetrics(""), &broker{}
	b := m.Broker(inner)
	for _, err := range []error{nil, context.Canceled, errors.New("x")} {
		inner.err = err
		if got := b.Publish(t.Context(), mqtt.Message{}); !errors.Is(got, err) {
			t.Errorf("publish: %v, want %v", got, err)
		}
		if got := b.Subscribe(t.Context(), nil, func(context.Context, mqtt.Message) error { return err }); !errors.Is(got, err) {
			t.Errorf("handle: %v, want %v", got, err)
		}
	}
	for _, b := range []mqtt.Broker{b, m.Broker(mqtt.Admitted(inner, nil, nil))} {
		inner.evicted, inner.asked = nil, false
		e := mqtt.Eviction{DeviceID: "gw-1", Reason: fleet.EvictedDeleted, At: time.Now(), Forget: true}
		if b.Evict(e); len(inner.evicted) != 1 || inner.evicted[0] != e {
			t.Errorf("sessions of a deleted device go on: %v", inner.evicted)
		}
		if !b.Listening("any") || !inner.asked {
			t.Error("the broker was not asked who listens, or its answer was lost")
		}
	}
	_, text := get(t, m.Handler(), "GET", "/metrics")
	for _, result := range []string{"ok", "canceled", "error"} {
		for _, want := range []string{`otad_mqtt_published_total{result="` + result + `"} 1`, `otad_mqtt_handle_seconds_count{result="` + result + `"} 1`} {
			if !strings.Contains(text, want) {
				t.Errorf("no %s", want)
			}
		}
	}
}

func TestHealth(t *testing.T) {
	var fault error
	mux := http.NewServeMux()
	observability.Health(mux, map[string]func(context.Context) error{"store": func(context.Context) error { return fault }})
	if code, _ := get(t, mux, "GET", "/readyz"); code != http.StatusOK {
		t.Errorf("ready: %d", code)
	}
	fault = errors.New("secret path /var/lib/otad")
	if code, text := get(t, mux, "GET", "/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(text, "store") || strings.Contains(text, "secret") {
		t.Errorf("not ready: %d %s", code, text)
	}
	if code, _ := get(t, mux, "GET", "/healthz"); code != http.StatusOK {
		t.Errorf("alive: %d", code)
	}
}

// sender answers each message with the status in its body, 0 for no answer.
type sender struct{ fleet.WebhookSender }

func (sender) Send(_ context.Context, m fleet.WebhookMessage) (fleet.WebhookAnswer, error) {
	if len(m.Body) == 0 {
		return fleet.WebhookAnswer{}, errors.New("nobody there")
	}
	status, err := strconv.Atoi(string(m.Body))
	return fleet.WebhookAnswer{Status: status}, err
}

func TestAttemptsAreCountedByOutcome(t *testing.T) {
	m := observability.NewMetrics("1.2.3")
	s := m.Webhooks(sender{})
	for _, body := range []string{"200", "299", "300", "500", ""} {
		answer, err := s.Send(t.Context(), fleet.WebhookMessage{Body: []byte(body)})
		if body != strconv.Itoa(answer.Status) && (body != "" || err == nil) {
			t.Errorf("%s: %+v, %v", body, answer, err)
		}
	}
	_, text := get(t, m.Handler(), "GET", "/metrics")
	for result, n := range map[string]string{"ok": "2", "refused": "2", "error": "1"} {
		if want := `otad_webhook_attempt_seconds_count{result="` + result + `"} ` + n; !strings.Contains(text, want) {
			t.Errorf("no %s", want)
		}
	}
}
