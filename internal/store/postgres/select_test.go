package postgres_test

import (
	"database/sql"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/store/sqlstore"
	"github.com/otad/otad/pkg/selector"
)

// fill makes devices with shadows behind the store's back, as many as wanted in
// little time. Of every 1000, each has a firmware version of its own.
func fill(t testing.TB, url string, n int) {
	t.Helper()
	const document = `'{"desired":{"interval":60},"reported":{"battery":' || i % 100 || ',"firmware":{"digest":"' || md5(i::text) || md5(i::text) ||
		'","name":"app","version":"1.' || i % 1000 || '"},' || (SELECT string_agg('"sensor-' || k || '":{"ok":true,"unit":"degrees celsius","value":' || (i + k) % 977 || '}', ',')
		FROM generate_series(1, 8) k) || '},"updatedAt":1700000000000,"version":1}'`
	tamper(t, url, fmt.Sprintf(`INSERT INTO devices (id, hardware, tags, key_fingerprint, created_at, firmware_digest)
		SELECT 'device-' || lpad(i::text, 7, '0'), 'board-a', '{"site":"s' || i %% 1000 || '"}', 'k', 1, md5(i::text) || md5(i::text) FROM generate_series(1, %[1]d) i;
		INSERT INTO shadows (device_id, name, version, document)
		SELECT 'device-' || lpad(i::text, 7, '0'), '', 1, %[2]s FROM generate_series(1, %[1]d) i;
		ANALYZE devices; ANALYZE shadows`, n, document))
}

var selectIndexes = []string{"shadow.reported.firmware.version", "tags.site", "shadow.reported.battery"}

func parse(t testing.TB, expr string) selector.Selector {
	t.Helper()
	sel, err := selector.Parse(expr)
	must(t, err)
	return sel
}

func indexFields(t testing.TB, s *sqlstore.Store) {
	t.Helper()
	fields, err := fleet.ParseIndexes(selectIndexes)
	must(t, err)
	must(t, s.IndexFields(t.Context(), fields))
}

// TestSelectorsUseTheIndex of the fields they compare, and nothing else when
// there is none.
func TestSelectorsUseTheIndex(t *testing.T) {
	url := server.Schema(t)
	s := open(t, url)
	fill(t, url, 20_000)
	indexFields(t, s)
	db, err := sql.Open("pgx", url)
	must(t, err)
	defer db.Close()
	for expr, want := range map[string]bool{
		`shadow.reported.firmware.version = "1.7"`:                                         true,
		`hardware = "board-a" AND shadow.reported.firmware.version = "1.7" AND NOT id = y`: true,
		`tags.site = "s5" AND shadow.reported.battery < 20`:                                true,
		`shadow.reported.battery = 20`:                                                     true,
		`shadow.reported.battery < 1`:                                                      true,
		`shadow.reported.firmware.version = "1.7" OR tags.site = "s5"`:                     false,
		`NOT tags.site = "s5"`:                                                             false,
		`shadow.reported.other = "1"`:                                                      false,
	} {
		q := fleet.DeviceQuery{Selector: parse(t, expr)}
		page, count, err := s.SelectQueries(t.Context(), q)
		must(t, err)
		for what, c := range map[string]sqlstore.Condition{"page": page, "count": count} {
			plan := explain(t, db, c)
			if strings.Contains(plan, "otad_field_") != want {
				t.Errorf("%s of %s: want an index: %v\n%s", what, expr, want, plan)
			}
			if want && strings.Contains(plan, "Seq Scan on shadows") {
				t.Errorf("%s of %s reads all shadows\n%s", what, expr, plan)
			}
		}
	}
	// What no index helps with is read by as many processes as there may be.
	db.SetMaxOpenConns(1)
	for _, setting := range []string{"min_parallel_table_scan_size = 0", "parallel_setup_cost = 0", "parallel_tuple_cost = 0"} {
		_, err := db.Exec("SET " + setting)
		must(t, err)
	}
	for _, expr := range []string{`shadow.reported.other < 1`, `shadow.reported."sensor-1".value < 10`, `shadow.reported.other = "1"`} {
		_, count, err := s.SelectQueries(t.Context(), fleet.DeviceQuery{Selector: parse(t, expr)})
		must(t, err)
		if plan := explain(t, db, count); !strings.Contains(plan, "Parallel Seq Scan on shadows") {
			t.Errorf("%s is not counted in parallel\n%s", expr, plan)
		}
	}
}

func explain(t testing.TB, db *sql.DB, c sqlstore.Condition) string {
	t.Helper()
	query := c.SQL
	for n := 1; strings.Contains(query, "?"); n++ {
		query = strings.Replace(query, "?", fmt.Sprintf("$%d", n), 1)
	}
	rows, err := db.Query("EXPLAIN "+query, c.Args...)
	must(t, err)
	defer rows.Close()
	var plan strings.Builder
	for rows.Next() {
		var line string
		must(t, rows.Scan(&line))
		plan.WriteString(line + "\n")
	}
	must(t, rows.Err())
	return plan.String()
}

// TestAnIndexThatWasNotFinishedIsMadeAnew: PostgreSQL leaves one behind that it
// does not use.
func TestAnIndexThatWasNotFinishedIsMadeAnew(t *testing.T) {
	url := server.Schema(t)
	s := open(t, url)
	fill(t, url, 10)
	indexFields(t, s)
	tamper(t, url, `UPDATE pg_index SET indisvalid = false WHERE indexrelid IN (SELECT c.oid FROM pg_class c
		WHERE starts_with(c.relname::text, 'otad_field_') AND c.relnamespace = current_schema()::regnamespace)`)
	indexFields(t, s)
	broken, err := s.Check(t.Context())
	must(t, err)
	if len(broken) > 0 {
		t.Fatal(broken)
	}
}

// BenchmarkSelect1M is selectors over a million devices.
func BenchmarkSelect1M(b *testing.B) {
	const n = 1_000_000
	url := durable.Database(b)
	s := open(b, url)
	fill(b, url, n)
	tamper(b, url, "VACUUM devices")
	tamper(b, url, "VACUUM shadows")
	start := time.Now()
	indexFields(b, s)
	b.Logf("three indexes in %s", time.Since(start).Round(time.Millisecond))
	for _, c := range []struct{ name, expr string }{
		{"indexed", `shadow.reported.firmware.version = "1.7"`},
		{"indexedTwo", `tags.site = "s7" AND shadow.reported.battery >= 0`},
		{"scanText", `shadow.reported.firmware.digest = "none"`},
		{"scanNumber", `shadow.reported.sensor-1.value < 10`},
	} {
		expr := strings.ReplaceAll(c.expr, "sensor-1", `"sensor-1"`)
		q := fleet.DeviceQuery{Selector: parse(b, expr)}
		b.Run(c.name+"/count", func(b *testing.B) {
			found := 0
			for b.Loop() {
				var err error
				found, err = s.CountDevices(b.Context(), q)
				must(b, err)
			}
			b.ReportMetric(float64(found), "devices")
		})
		b.Run(c.name+"/page", func(b *testing.B) {
			for b.Loop() {
				left := 50
				must(b, s.SelectDevices(b.Context(), q, func(fleet.DeviceView) bool { left--; return left > 0 }))
			}
		})
		b.Run(c.name+"/all", func(b *testing.B) {
			for b.Loop() {
				must(b, s.SelectDevices(b.Context(), q, func(fleet.DeviceView) bool { return true }))
			}
		})
	}
}
