// Package observability is what an operator sees of a running otad: logs,
// metrics and health. It wraps ports and handlers from outside; no domain code
// knows of it, and only cmd imports it.
package observability

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/mqtt"
)

// NewLogger writes to w in format "json" or "text" from level "debug", "info",
// "warn" or "error" up.
func NewLogger(w io.Writer, format, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log level %q: want debug, info, warn or error", level)
	}
	options := &slog.HandlerOptions{Level: l, ReplaceAttr: readable}
	switch format {
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	}
	return nil, fmt.Errorf("log format %q: want json or text", format)
}

// readable writes durations as 1m30s in JSON too, which has them in nanoseconds.
func readable(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	return a
}

// Metrics is the set of figures of one otad.
type Metrics struct {
	registry *prometheus.Registry
	requests *prometheus.HistogramVec
	handled  *prometheus.HistogramVec
	sent     *prometheus.CounterVec
	webhooks *prometheus.HistogramVec
}

// NewMetrics returns figures for the given version of otad.
func NewMetrics(version string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "otad_http_request_seconds", Help: "Time to answer HTTP requests.", Buckets: prometheus.DefBuckets,
		}, []string{"plane", "method", "status"}),
		handled: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "otad_mqtt_handle_seconds", Help: "Time from a device's message to its durable effect.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5},
		}, []string{"result"}),
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "otad_mqtt_published_total", Help: "Messages published to devices.",
		}, []string{"result"}),
		webhooks: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "otad_webhook_attempt_seconds", Help: "Time of attempts to deliver to webhooks.", Buckets: []float64{.01, .05, .1, .25, .5, 1, 2.5, 5, 10, 20},
		}, []string{"result"}),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "otad_build_info", Help: "Always 1.", ConstLabels: prometheus.Labels{"version": version},
	})
	info.Set(1)
	m.registry.MustRegister(m.requests, m.handled, m.sent, m.webhooks, info,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Handler serves the figures in Prometheus' text format.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// HTTP counts and times the requests of one plane.
func (m *Metrics) HTTP(plane string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		rec := &recorder{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(rec, r)
		m.requests.WithLabelValues(plane, method(r.Method), strconv.Itoa(rec.status)).Observe(time.Since(start).Seconds())
	})
}

// method keeps a client's inventions out of the labels.
func method(m string) string {
	switch m {
	case http.MethodGet, http.MethodPost, http.MethodPut, http.MethodHead:
		return m
	}
	return "other"
}

type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController and flushing streams through.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// Flush is what streaming handlers look for.
func (r *recorder) Flush() {
	_ = http.NewResponseController(r.ResponseWriter).Flush() // a writer that can not flush streams late
}

// Broker counts and times the messages of a broker.
func (m *Metrics) Broker(b mqtt.Broker) mqtt.Broker { return measuredBroker{b, m} }

type measuredBroker struct {
	mqtt.Broker
	m *Metrics
}

func (b measuredBroker) Subscribe(ctx context.Context, filters []string, h mqtt.Handler) error {
	return b.Broker.Subscribe(ctx, filters, func(ctx context.Context, msg mqtt.Message) error {
		start := time.Now()
		err := h(ctx, msg)
		b.m.handled.WithLabelValues(result(err)).Observe(time.Since(start).Seconds())
		return err
	})
}

func (b measuredBroker) Publish(ctx context.Context, msg mqtt.Message) error {
	err := b.Broker.Publish(ctx, msg)
	b.m.sent.WithLabelValues(result(err)).Inc()
	return err
}

func (b measuredBroker) Reply(ctx context.Context, request, answer mqtt.Message) error {
	err := b.Broker.Reply(ctx, request, answer)
	b.m.sent.WithLabelValues(result(err)).Inc()
	return err
}

// Webhooks counts and times the attempts of a sender: ok, refused by the receiver,
// or no answer (error).
func (m *Metrics) Webhooks(s fleet.WebhookSender) fleet.WebhookSender { return measuredSender{s, m} }

type measuredSender struct {
	fleet.WebhookSender
	m *Metrics
}

func (s measuredSender) Send(ctx context.Context, msg fleet.WebhookMessage) (fleet.WebhookAnswer, error) {
	start := time.Now()
	answer, err := s.WebhookSender.Send(ctx, msg)
	outcome := result(err)
	if err == nil && (answer.Status < 200 || answer.Status > 299) {
		outcome = "refused"
	}
	s.m.webhooks.WithLabelValues(outcome).Observe(time.Since(start).Seconds())
	return answer, err
}

func result(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, context.Canceled):
		return "canceled"
	}
	return "error"
}

// Health serves /healthz (the process runs) and /readyz (it can do its work: all
// checks pass within a second).
func Health(mux *http.ServeMux, checks map[string]func(context.Context) error) {
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		for name, check := range checks {
			if err := check(ctx); err != nil {
				http.Error(w, name+": not ready", http.StatusServiceUnavailable)
				return
			}
		}
		_, _ = io.WriteString(w, "ok\n")
	})
}
