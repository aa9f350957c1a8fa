package shadow

import (
	"fmt"
	"strings"
	"testing"
)

// benchDocument is a document of about 0.8 KB of state, as a gateway has it.
func benchDocument(tb testing.TB) Document {
	var parts []string
	for i := range 9 {
		parts = append(parts, fmt.Sprintf(`"sensor%d":{"celsius":%d.5,"online":true,"unit":"C"}`, i, 20+i))
	}
	common := `"firmware":{"name":"gateway","version":"1.4.2","digest":"3b7f0e5c9a"},"network":{"dns":["10.0.0.1","10.0.0.2"],"mtu":1500}`
	desired := `{` + common + `,"interval":60,"log":"info"}`
	reported := `{` + common + `,"battery":87,"interval":30,"log":"info","uptime":123456,` + strings.Join(parts, ",") + `}`
	return apply(tb, Document{}, t0, `{"state":{"desired":`+desired+`,"reported":`+reported+`}}`).Document
}

var benchRequest = []byte(`{"state":{"reported":{"battery":86,"uptime":123466,"sensor3":{"celsius":23.75}}},"clientToken":"7f3a"}`)

func BenchmarkApply(b *testing.B) {
	d := benchDocument(b)
	u, err := ParseUpdate(benchRequest)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Apply(d, u, t1); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(d.size()), "state-bytes")
}

// BenchmarkStoredUpdate is all a store computes for one update.
func BenchmarkStoredUpdate(b *testing.B) {
	stored := storedText(benchDocument(b))
	var text []byte
	b.ReportAllocs()
	for b.Loop() {
		d, err := ParseDocument(stored)
		if err != nil {
			b.Fatal(err)
		}
		u, err := ParseUpdate(benchRequest)
		if err != nil {
			b.Fatal(err)
		}
		r, err := Apply(d, u, t1)
		if err != nil {
			b.Fatal(err)
		}
		text = r.Document.Append(text[:0])
	}
}

func BenchmarkDocumentsPayload(b *testing.B) {
	d := benchDocument(b)
	u, err := ParseUpdate(benchRequest)
	if err != nil {
		b.Fatal(err)
	}
	r, err := Apply(d, u, t1)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		_ = r.DocumentsPayload()
	}
}

// BenchmarkReport is what is made of a report of a dozen sensors that says all there
// is, step by step.
func BenchmarkReport(b *testing.B) {
	report := func(n int) []byte {
		text := fmt.Appendf(nil, `{"state":{"reported":{"firmware":{"name":"app","version":"1.7","digest":"%064x"}`, 7)
		for i := range 12 {
			text = fmt.Appendf(text, `,"sensor-%d":{"value":%d,"unit":"degrees celsius","ok":true}`, i, n)
		}
		return append(text, `}}}`...)
	}
	first := apply(b, apply(b, Document{}, t0, `{"state":{"desired":{"interval":60}}}`).Document, t0, string(report(1)))
	stored, request := storedText(first.Document), report(2)
	u, err := ParseUpdate(request)
	if err != nil {
		b.Fatal(err)
	}
	r, err := Apply(first.Document, u, t1)
	if err != nil {
		b.Fatal(err)
	}
	var text []byte
	for _, step := range []struct {
		name string
		run  func()
	}{
		{"ParseUpdate", func() { _, _ = ParseUpdate(request) }},
		{"ParseDocument", func() { _, _ = ParseDocument(stored) }},
		{"Apply", func() { _, _ = Apply(first.Document, u, t1) }},
		{"Append", func() { text = r.Document.Append(text[:0]) }},
		{"AcceptedPayload", func() { _ = r.AcceptedPayload() }},
		{"DeltaPayload", func() { _ = r.DeltaPayload() }},
	} {
		b.Run(step.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				step.run()
			}
		})
	}
}
