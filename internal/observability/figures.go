package observability

import "github.com/prometheus/client_golang/prometheus"

// Figure is a number that another part of otad keeps, out of all that it says at once.
type Figure[T any] struct {
	Name, Help string
	Total      bool // it only rises, from the start of this otad on: a counter, else a gauge
	Of         func(T) float64
}

// AddFigures shows figures of what read returns, which is read once for a scrape.
func AddFigures[T any](m *Metrics, read func() T, list []Figure[T]) {
	f := figures[T]{read: read}
	for _, x := range list {
		kind := prometheus.GaugeValue
		if x.Total {
			kind = prometheus.CounterValue
		}
		f.list = append(f.list, figure[T]{prometheus.NewDesc(x.Name, x.Help, nil, nil), kind, x.Of})
	}
	m.registry.MustRegister(f)
}

type figures[T any] struct {
	read func() T
	list []figure[T]
}

type figure[T any] struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	of   func(T) float64
}

// Describe implements prometheus.Collector.
func (f figures[T]) Describe(to chan<- *prometheus.Desc) {
	for _, x := range f.list {
		to <- x.desc
	}
}

// Collect implements prometheus.Collector.
func (f figures[T]) Collect(to chan<- prometheus.Metric) {
	now := f.read()
	for _, x := range f.list {
		to <- prometheus.MustNewConstMetric(x.desc, x.kind, x.of(now))
	}
}
