package device

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestDurationsAreReadableInEveryFormat(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		var b bytes.Buffer
		log, err := NewLogger(&b, format, "info")
		if err != nil {
			t.Fatal(err)
		}
		log.Debug("quiet")
		log.With("since", time.Hour).Warn("loud", "retry", 90*time.Second, slog.Group("g", "wait", time.Millisecond))
		for _, want := range []string{"1h0m0s", "1m30s", "1ms"} {
			if s := b.String(); !strings.Contains(s, want) || strings.Contains(s, "quiet") {
				t.Errorf("%s: no %s in %s", format, want, s)
			}
		}
	}
	for _, bad := range [][2]string{{"xml", "info"}, {"", "info"}, {"text", "loud"}} {
		if _, err := NewLogger(new(bytes.Buffer), bad[0], bad[1]); err == nil || !strings.Contains(err.Error(), "want") {
			t.Errorf("%v: %v", bad, err)
		}
	}
}
