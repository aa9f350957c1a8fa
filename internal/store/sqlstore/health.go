package sqlstore

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

const (
	selectSeen = `SELECT outcomes, COUNT(*) FROM health_pairs WHERE rollout_id = ? AND from_at > ? GROUP BY outcomes`

	selectUnmatched = `SELECT d.id, d.hardware, d.tags, d.firmware_digest, e.attempt, e.finished_at
	FROM executions e JOIN devices d ON d.id = e.device_id
	WHERE e.rollout_id = ? AND e.latest = 1 AND e.status = 'SUCCEEDED' AND e.class <> 'underway' AND e.finished_at > ? AND NOT EXISTS
	(SELECT 1 FROM health_pairs p WHERE p.rollout_id = e.rollout_id AND p.device_id = e.device_id AND p.attempt = e.attempt)
	ORDER BY e.finished_at, e.device_id LIMIT ?`

	selectPartners = `SELECT d.id, d.hardware, d.tags, d.firmware_digest FROM candidates c JOIN devices d ON d.id = c.device_id
	WHERE c.rollout_id = ? AND c.line = ? AND c.turn >= ? AND d.revoked_at IS NULL
	AND NOT EXISTS (SELECT 1 FROM health_pairs p WHERE p.rollout_id = c.rollout_id AND p.partner_id = c.device_id AND p.partner_id <> '')
	AND NOT EXISTS (SELECT 1 FROM executions e WHERE e.rollout_id = c.rollout_id AND e.device_id = c.device_id)
	ORDER BY c.turn LIMIT ?`

	insertPairs = `INSERT INTO health_pairs (rollout_id, device_id, attempt, partner_id, partner_digest, from_at, until_at, outcomes)
	SELECT CAST(? AS TEXT), v.device, v.attempt, v.partner, v.digest, v.from_at, v.until_at, v.outcomes FROM {rows}
	WHERE EXISTS (SELECT 1 FROM devices d WHERE d.id = v.device) AND (v.partner = '' OR EXISTS (SELECT 1 FROM devices d WHERE d.id = v.partner)) ON CONFLICT DO NOTHING`

	updateOutcomes = `UPDATE health_pairs SET outcomes = v.outcomes FROM {rows}
	WHERE health_pairs.rollout_id = v.rollout AND health_pairs.device_id = v.device AND health_pairs.attempt = v.attempt AND health_pairs.outcomes = ''`

	// events counts those of one of a pair in its time.
	events = `(SELECT COUNT(*) FROM device_events v WHERE v.device_id = %s AND v.kind = '%s' AND v.received_at > p.from_at AND v.received_at <= p.until_at)`

	dueColumns = `p.device_id, p.attempt, p.partner_id, p.partner_digest, p.from_at, p.until_at,
	CASE WHEN x.firmware_digest <> p.partner_digest OR
	EXISTS (SELECT 1 FROM executions e WHERE e.rollout_id = p.rollout_id AND e.device_id = p.partner_id) THEN 1 ELSE 0 END, d.connected, o.connected`
	fromDue = ` FROM health_pairs p LEFT JOIN devices x ON x.id = p.partner_id LEFT JOIN device_connections d ON d.device_id = p.device_id LEFT JOIN device_connections o ON o.device_id = p.partner_id`
	// withShadows joins the documents of both.
	withShadows = ` LEFT JOIN shadows s ON s.device_id = p.device_id AND s.name = '' AND s.deleted_at IS NULL
	LEFT JOIN shadows t ON t.device_id = p.partner_id AND t.name = '' AND t.deleted_at IS NULL`
	whereDue = ` WHERE p.rollout_id = ? AND p.outcomes = '' AND p.until_at <= ? ORDER BY p.until_at, p.device_id LIMIT ?`
)

// seen counts the pairs of a rollout for its progress.
func (s *Store) seen(ctx context.Context, r ota.Rollout, succeeded int) (ota.Seen, error) {
	seen := ota.Seen{Signals: make([]ota.Compared, len(r.Terms.Health.Signals))}
	all := 0
	err := s.rows(ctx, func(row row) error {
		var outcomes string
		var n int
		if err := row.Scan(&outcomes, &n); err != nil {
			return err
		}
		all += n
		switch outcomes {
		case "":
			seen.Watched += n
		case fleet.PairAlone:
			seen.Alone += n
		default:
			seen.Add(outcomes, n)
		}
		return nil
	}, selectSeen, r.ID, stored(r.ArmedAt).UnixMicro())
	seen.Unmatched = max(0, min(succeeded, fleet.MaxPairs)-all)
	return seen, err
}

// Unmatched implements fleet.HealthStore.
func (s *Store) Unmatched(ctx context.Context, r ota.Rollout, limit int) ([]fleet.Member, error) {
	var list []fleet.Member
	err := s.rows(ctx, func(row row) error {
		var m fleet.Member
		d, err := scanMember(row, r, &m.Attempt, timeInto{&m.FinishedAt})
		m.Surveyed = d
		list = append(list, m)
		return err
	}, selectUnmatched, r.ID, stored(r.ArmedAt).UnixMicro(), limit)
	if err != nil {
		return nil, fmt.Errorf("read updated devices of rollout %s: %w", r.ID, err)
	}
	return list, nil
}

// Partners implements fleet.HealthStore.
func (s *Store) Partners(ctx context.Context, r ota.Rollout, turn, limit int) ([]fleet.Surveyed, error) {
	var list []fleet.Surveyed
	err := s.rows(ctx, func(row row) error {
		d, err := scanMember(row, r)
		list = append(list, d)
		return err
	}, selectPartners, r.ID, r.Line, turn, limit)
	if err != nil {
		return nil, fmt.Errorf("read partners for devices of rollout %s: %w", r.ID, err)
	}
	return list, nil
}

func scanMember(row row, r ota.Rollout, more ...any) (fleet.Surveyed, error) {
	var v fleet.DeviceView
	var digest string
	err := row.Scan(append([]any{&v.ID, &v.Hardware, mapInto{&v.Tags}, &digest}, more...)...)
	d := fleet.Survey(v, r.Terms.Strata)
	d.Digest = digest
	return d, err
}

// PutPairs implements fleet.HealthStore.
func (s *Store) PutPairs(ctx context.Context, rolloutID string, pairs []fleet.Pair) error {
	return s.writer.doAlone(ctx, func(t *tx) error {
		if err := t.keepOut(t.w.dialect.Reach); err != nil { // no device goes before it is in its pair
			return err
		}
		return t.putPairs(rolloutID, pairs)
	})
}

func (t *tx) putPairs(rolloutID string, pairs []fleet.Pair) error {
	_, err := t.bulk(t.exec, insertPairs, len(pairs), []any{rolloutID}, append(pairKeys(pairs),
		texts("partner", list(pairs, func(p fleet.Pair) string { return p.PartnerID })),
		texts("digest", list(pairs, func(p fleet.Pair) string { return p.PartnerDigest })),
		times("from_at", list(pairs, func(p fleet.Pair) time.Time { return p.From })),
		times("until_at", list(pairs, func(p fleet.Pair) time.Time { return p.Until })),
		texts("outcomes", list(pairs, func(p fleet.Pair) string { return p.Outcomes })))...)
	return err
}

// PutOutcomes implements fleet.HealthStore.
func (s *Store) PutOutcomes(ctx context.Context, rolloutID string, pairs []fleet.Pair) error {
	return s.writer.do(ctx, func(t *tx) error {
		_, err := t.bulk(t.exec, updateOutcomes, len(pairs), nil, append(pairKeys(pairs),
			texts("rollout", list(pairs, func(fleet.Pair) string { return rolloutID })),
			texts("outcomes", list(pairs, func(p fleet.Pair) string { return p.Outcomes })))...)
		return err
	})
}

func pairKeys(pairs []fleet.Pair) []Column {
	return []Column{
		texts("device", list(pairs, func(p fleet.Pair) string { return p.DeviceID })),
		integers("attempt", list(pairs, func(p fleet.Pair) int64 { return int64(p.Attempt) })),
	}
}

// DuePairs implements fleet.HealthStore.
func (s *Store) DuePairs(ctx context.Context, r ota.Rollout, now time.Time, limit int) ([]fleet.WatchedPair, error) {
	documents := slices.ContainsFunc(r.Terms.Health.Signals, func(s ota.Signal) bool { return s.Path() != nil })
	query := "SELECT " + dueColumns
	for _, device := range []string{"p.device_id", "p.partner_id"} {
		for _, kind := range []string{fleet.EventCrash, fleet.EventReboot} {
			query += ", " + fmt.Sprintf(events, device, kind)
		}
	}
	if documents {
		query += ", s.document, t.document" + fromDue + withShadows + whereDue
	} else {
		query += fromDue + whereDue
	}
	var due []fleet.WatchedPair
	err := s.rows(ctx, func(row row) error {
		var p fleet.WatchedPair
		var changed int
		var device, partner sql.NullInt64
		dest := []any{&p.DeviceID, &p.Attempt, &p.PartnerID, &p.PartnerDigest, timeInto{&p.From}, timeInto{&p.Until}, &changed, &device, &partner,
			&p.Device.Crashes, &p.Device.Reboots, &p.Partner.Crashes, &p.Partner.Reboots}
		if documents {
			dest = append(dest, documentInto{&p.Device.Shadow}, documentInto{&p.Partner.Shadow})
		}
		err := row.Scan(dest...)
		p.Changed = changed == 1
		p.Device.Known, p.Device.Connected = device.Valid, device.Int64 == 1
		p.Partner.Known, p.Partner.Connected = partner.Valid, partner.Int64 == 1
		due = append(due, p)
		return err
	}, query, r.ID, stored(now).UnixMicro(), limit)
	if err != nil {
		return nil, fmt.Errorf("read pairs of rollout %s: %w", r.ID, err)
	}
	return due, nil
}
