package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

// maxBroken is how many rows Check names for one broken invariant.
const maxBroken = 20

// invariant is broken by every row its query returns; the row's one column
// names what.
type invariant struct{ words, query string }

var invariants = []invariant{
	{"device has more than one execution IN_PROGRESS",
		`SELECT device_id FROM executions WHERE status = 'IN_PROGRESS' GROUP BY device_id HAVING COUNT(*) > 1`},
	{"execution is of no rollout",
		executionName + ` WHERE NOT EXISTS (SELECT 1 FROM rollouts r WHERE r.id = e.rollout_id)`},
	{"what is not finished is on no device",
		executionName + ` WHERE (e.status IN ('QUEUED', 'IN_PROGRESS') OR e.retry_at IS NOT NULL) AND NOT EXISTS (SELECT 1 FROM devices d WHERE d.id = e.device_id)`},
	{"execution has an unknown status", executionName + ` WHERE e.status NOT IN
		('QUEUED', 'IN_PROGRESS', 'SUCCEEDED', 'FAILED', 'REJECTED', 'TIMED_OUT', 'CANCELED', 'REMOVED')`},
	{"execution has a version below 1", executionName + ` WHERE e.version < 1`},
	{"finished_at is set exactly when an execution is finished",
		executionName + ` WHERE (e.finished_at IS NULL) <> (e.status IN ('QUEUED', 'IN_PROGRESS'))`},
	{"started_at is set from IN_PROGRESS on, unless it ended before",
		executionName + ` WHERE (e.status = 'QUEUED' AND e.started_at IS NOT NULL)
		OR (e.status NOT IN ('QUEUED', 'CANCELED', 'REMOVED', 'TIMED_OUT') AND e.started_at IS NULL)`},
	{"expires_at is set only on what is not finished, with expires_as", executionName + ` WHERE
		(e.expires_at IS NOT NULL AND e.status NOT IN ('QUEUED', 'IN_PROGRESS')) OR (e.expires_at IS NULL) <> (e.expires_as = '')`},
	{"retry_at is set only on the newest attempt, which did not succeed", executionName + ` WHERE e.retry_at IS NOT NULL
		AND (e.latest <> 1 OR e.status IN ('QUEUED', 'IN_PROGRESS') OR e.class = 'succeeded')`},
	{"drifted_at, with what it runs, is set exactly when a device has drifted", executionName + ` WHERE
		(e.drifted_at IS NULL) = (e.class = 'drifted') OR (e.drifted_at IS NULL) <> (e.runs = '')`},
	{"went_back_at is set only on what the server ended", executionName + ` WHERE
		e.went_back_at IS NOT NULL AND e.status NOT IN ('TIMED_OUT', 'CANCELED')`},
	{"mark is of no device", `SELECT device_id FROM marks WHERE device_id NOT IN (SELECT id FROM devices)`},
	{"rollout has more in flight than it may", `SELECT r.id FROM rollouts r WHERE r.max_in_flight > 0
		AND r.max_in_flight < (SELECT COUNT(*) FROM executions e WHERE e.rollout_id = r.id AND e.status = 'IN_PROGRESS')`},
	{"rollout has more in flight in a lane than it may", `SELECT r.id || ' ' || e.lane FROM rollouts r JOIN executions e ON e.rollout_id = r.id
		WHERE r.max_per_lane > 0 AND e.status = 'IN_PROGRESS' GROUP BY r.id, e.lane, r.max_per_lane HAVING COUNT(*) > r.max_per_lane`},
	{"what is IN_PROGRESS expires by the rollout's timeout at the latest", executionName + ` JOIN rollouts r ON r.id = e.rollout_id
		WHERE r.in_progress_timeout > 0 AND e.status = 'IN_PROGRESS'
		AND (e.expires_at IS NULL OR e.expires_at > e.started_at + r.in_progress_timeout)`},
	{"class is set exactly when an execution has a verdict", executionName + ` WHERE
		(e.class = '') <> (e.status IN ('QUEUED', 'IN_PROGRESS', 'CANCELED', 'REMOVED'))
		OR (e.class IN ('succeeded', 'drifted', 'underway')) <> (e.status = 'SUCCEEDED')`},
	{"a device is underway exactly while its path goes on", executionName + ` WHERE e.leg < 1 OR e.leg > e.attempt
		OR (e.class = 'underway' AND e.via = '') OR (e.class = 'succeeded' AND e.via <> '')`},
	{"counts are not those of the rows", `SELECT u.rollout_id || ' stage ' || CAST(u.stage + 1 AS TEXT) || ' ' || u.status || ' ' || u.class FROM
		(SELECT rollout_id, stage, status, class, n, armed, retrying FROM execution_counts UNION ALL
		SELECT x.rollout_id, x.stage, x.status, x.class, -x.n, -x.armed, -x.retrying FROM
		(` + countRows + ` GROUP BY e.rollout_id, e.stage, e.status, e.class) AS x) AS u
		GROUP BY u.rollout_id, u.stage, u.status, u.class HAVING SUM(u.n) <> 0 OR SUM(u.armed) <> 0 OR SUM(u.retrying) <> 0`},
	{"counts are armed at another moment than their rollout", `SELECT r.id FROM rollouts r WHERE NOT EXISTS
		(SELECT 1 FROM armed_counts a WHERE a.rollout_id = r.id AND COALESCE(a.armed_at, 0) = COALESCE(r.armed_at, 0))`},
	{"latest marks the newest attempt only", executionName + ` WHERE (e.latest = 1) = EXISTS (SELECT 1 FROM executions n
		WHERE n.rollout_id = e.rollout_id AND n.device_id = e.device_id AND n.attempt > e.attempt)`},
	{"attempts are counted from 1 without a gap", executionName + ` WHERE e.attempt < 1 OR (e.attempt > 1 AND NOT EXISTS
		(SELECT 1 FROM executions p WHERE p.rollout_id = e.rollout_id AND p.device_id = e.device_id AND p.attempt = e.attempt - 1))`},
	{"an older attempt is finished", executionName + ` WHERE e.latest <> 1 AND e.status IN ('QUEUED', 'IN_PROGRESS')`},
	{"shadow belongs to no device",
		shadowName + ` WHERE NOT EXISTS (SELECT 1 FROM devices d WHERE d.id = s.device_id)`},
	{"shadow has a version below 1", shadowName + ` WHERE s.version < 1`},
	{"a shadow is empty exactly when it is deleted", shadowName + ` WHERE (s.deleted_at IS NULL) = (s.document = '')`},
	{"a device without a shadow is kept as running an image", `SELECT d.id FROM devices d WHERE d.firmware_digest <> '' AND NOT EXISTS
		(SELECT 1 FROM shadows s WHERE s.device_id = d.id AND s.name = '' AND s.document <> '')`},
	{"member of a group is no device",
		`SELECT group_name || ': ' || device_id FROM group_members m WHERE NOT EXISTS (SELECT 1 FROM devices d WHERE d.id = m.device_id)`},
	{"a static group has a selector", `SELECT name FROM device_groups WHERE dynamic <> 1 AND selector <> ''`},
	{"member is of no group",
		`SELECT device_id || ' in ' || group_name FROM group_members m WHERE NOT EXISTS (SELECT 1 FROM device_groups g WHERE g.name = m.group_name)`},
	{"last seen belongs to no device",
		`SELECT device_id FROM device_seen WHERE device_id NOT IN (SELECT id FROM devices)`},
	{"connection belongs to no device",
		`SELECT device_id FROM device_connections WHERE device_id NOT IN (SELECT id FROM devices)`},
	{"eviction is of no device, and not for its deletion", fmt.Sprintf(`SELECT device_id FROM device_evictions
		WHERE reason <> '%s' AND device_id NOT IN (SELECT id FROM devices)`, fleet.EvictedDeleted)},
	{"credential belongs to no device",
		`SELECT id FROM device_credentials WHERE device_id NOT IN (SELECT id FROM devices)`},
	{"device has more than one password",
		`SELECT device_id FROM device_credentials WHERE kind = 'password' GROUP BY device_id HAVING COUNT(*) > 1`},
	{"credential is of an unknown kind", `SELECT id FROM device_credentials WHERE kind NOT IN ('password', 'key')`},
	{"metadata versions are counted without a gap",
		`SELECT role FROM metadata GROUP BY role HAVING MAX(version) - MIN(version) + 1 <> COUNT(*)`},
	{"metadata versions are counted from 1, but for superseded ones", fmt.Sprintf(`SELECT role FROM metadata GROUP BY role
		HAVING MIN(version) <> CASE WHEN role IN ('%s', '%s') AND MAX(version) > %[3]d THEN MAX(version) - %[3]d + 1 ELSE 1 END`,
		fleet.RoleSnapshot, fleet.RoleTimestamp, fleet.KeptMetadata)},
	{"signed_at is set from SIGNED on", releaseName + ` WHERE state = 'DRAFT' AND signed_at IS NOT NULL OR state = 'SIGNED' AND signed_at IS NULL`},
	{"a release is WITHDRAWN without a moment or a reason, or has them before", releaseName + ` WHERE (state = 'WITHDRAWN') <> (withdrawn_at IS NOT NULL)
		OR (state = 'WITHDRAWN') <> (reason <> '')`},
	{"enrollment token was used too often", `SELECT id FROM enrollment_tokens WHERE uses < 0`},
	{"certificate stands for no device", `SELECT certificate_id FROM provisioned WHERE device_id NOT IN (SELECT id FROM devices)`},
	{"certificate was given to no device", `SELECT serial FROM device_certificates WHERE device_id NOT IN (SELECT id FROM devices)`},
	{"too many events of a device are kept", fmt.Sprintf(`SELECT device_id FROM device_events GROUP BY device_id HAVING COUNT(*) > %d`, fleet.MaxEventsKept)},
	{"the last event does not stand where its log says", `SELECT l.device_id FROM device_event_logs l WHERE l.position <>
		(SELECT COALESCE(MAX(e.position), 0) FROM device_events e WHERE e.device_id = l.device_id)`},
	{"event belongs to no device", `SELECT device_id FROM device_event_logs WHERE device_id NOT IN (SELECT id FROM devices)`},
	{"rollout is of no release", `SELECT id FROM rollouts r WHERE r.command = '' AND NOT EXISTS
		(SELECT 1 FROM releases e WHERE e.name = r.release_name AND e.version = r.release_version)`},
	{"rollout is of a command and a release", `SELECT id FROM rollouts WHERE command <> '' AND (release_name IS NOT NULL OR release_version IS NOT NULL)`},
	{"upload is of no execution", `SELECT u.rollout_id || ' on ' || u.device_id FROM uploads u WHERE NOT EXISTS (SELECT 1 FROM executions e
		WHERE e.rollout_id = u.rollout_id AND e.device_id = u.device_id AND e.attempt = u.attempt)`},
	{"webhook is in an unknown state", `SELECT id FROM webhooks WHERE state NOT IN ('ENABLED', 'PAUSED', 'GONE')`},
	{"webhook stands behind an event that there was not",
		`SELECT id FROM webhooks WHERE seq < 0 OR seq > COALESCE((SELECT m.seq FROM feed_marks m WHERE m.name = 'end'), 0)`},
	{"webhook is claimed by nobody, or for ever", `SELECT id FROM webhooks WHERE (owner = '') <> (claimed_until IS NULL)`},
	{"webhook has two secrets without an end, or an end without two", `SELECT id FROM webhooks WHERE (old_until IS NULL) <> (old_salt = '')`},
	{"dead letter is of no webhook", `SELECT webhook_id || ' event ' || CAST(seq AS TEXT) FROM webhook_dead WHERE webhook_id NOT IN (SELECT id FROM webhooks)`},
	{"too many dead letters are kept", fmt.Sprintf(`SELECT webhook_id FROM webhook_dead GROUP BY webhook_id HAVING COUNT(*) > %d`, fleet.MaxDeadLetters)},
	{"pair is of no execution", pairName + ` WHERE NOT EXISTS (SELECT 1 FROM executions e
		WHERE e.rollout_id = p.rollout_id AND e.device_id = p.device_id AND e.attempt = p.attempt)`},
	{"pair has no partner and is not alone", fmt.Sprintf(pairName+` WHERE (p.partner_id = '') <> (p.outcomes = '%s')`, fleet.PairAlone)},
	{"partner in a pair that is watched is no device", pairName + ` WHERE p.partner_id <> '' AND p.outcomes = '' AND NOT EXISTS (SELECT 1 FROM devices d WHERE d.id = p.partner_id)`},
	{"ended_at is set exactly when a rollout has ended",
		`SELECT id FROM rollouts WHERE (state IN ('COMPLETED', 'ABORTED', 'ROLLED_BACK')) = (ended_at IS NULL)`},
	{"rollout reverts none that there is", `SELECT id FROM rollouts r WHERE r.revert_of <> ''
		AND NOT EXISTS (SELECT 1 FROM rollouts p WHERE p.id = r.revert_of)`},
	{"rollout is ROLLED_BACK before its reverts have ended", `SELECT p.id FROM rollouts p JOIN rollouts r ON r.revert_of = p.id AND r.revert_of <> ''
		WHERE p.state = 'ROLLED_BACK' AND r.ended_at IS NULL`},
}

const (
	executionName = `SELECT e.rollout_id || ' on ' || e.device_id || ' attempt ' || CAST(e.attempt AS TEXT) FROM executions e`
	releaseName   = `SELECT name || '@' || version FROM releases`
	pairName      = `SELECT p.device_id || ' in rollout ' || p.rollout_id FROM health_pairs p`
	shadowName    = `SELECT s.device_id || ' ' || s.name FROM shadows s`
)

// Check implements fleet.Store. It reads one moment of the database.
func (s *Store) Check(ctx context.Context) ([]string, error) {
	t, err := s.config.Reader.BeginTx(ctx, &sql.TxOptions{ReadOnly: true, Isolation: s.config.Dialect.Snapshot})
	if err != nil {
		return nil, fmt.Errorf("check store: %w", err)
	}
	defer func() { _ = t.Rollback() }()
	c := checker{ctx: ctx, tx: t, dialect: s.config.Dialect}
	for _, step := range []func() error{c.structures, c.invariants, c.rollouts, c.shadows, c.texts, c.groups, c.feed} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("check store: %w", err)
		}
	}
	return c.broken, nil
}

// checker gathers what is broken; ctx is that of the one call it lives for.
type checker struct {
	ctx     context.Context
	tx      *sql.Tx
	dialect Dialect
	broken  []string
}

func (c *checker) say(format string, args ...any) {
	c.broken = append(c.broken, fmt.Sprintf(format, args...))
}

func (c *checker) each(f func(row) error, query string, args ...any) error {
	rows, err := c.tx.QueryContext(c.ctx, c.dialect.Rebind(query), args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := f(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (c *checker) structures() error {
	faults, err := c.dialect.Integrity(c.ctx, c.tx)
	c.broken = append(c.broken, faults...)
	return err
}

func (c *checker) invariants() error {
	for _, i := range invariants {
		err := c.each(func(r row) error {
			var what string
			err := r.Scan(&what)
			c.say("%s: %s", i.words, what)
			return err
		}, i.query+` LIMIT ?`, maxBroken)
		if err != nil {
			return fmt.Errorf("%s: %w", i.words, err)
		}
	}
	return nil
}

// rollouts holds the executions against the stages, which are JSON.
func (c *checker) rollouts() error {
	var list []ota.Rollout
	err := c.each(func(r row) error {
		o, err := scanRollout(r)
		if err != nil {
			c.say("rollout %s can not be read: %v", o.ID, err)
			return nil
		}
		list = append(list, o)
		return nil
	}, selectRollout)
	if err != nil {
		return err
	}
	for _, r := range list {
		if err := c.rollout(r); err != nil {
			return err
		}
	}
	return c.each(func(row row) error {
		var id string
		err := row.Scan(&id)
		if i := slices.IndexFunc(list, func(r ota.Rollout) bool { return r.ID == id }); i >= 0 && !list[i].Opening() {
			c.say("rollout %s is noted as being opened, and is not", id)
		}
		return err
	}, `SELECT id FROM rollouts WHERE opening = 1`)
}

func (c *checker) rollout(r ota.Rollout) error {
	target := 0
	for _, stage := range r.Stages {
		target = max(target, stage.Target)
	}
	if r.Follows && !r.StartedAt.IsZero() {
		if err := c.line(r, target); err != nil {
			return err
		}
	}
	return c.each(func(row row) error {
		var n, low, high int
		if err := row.Scan(&n, &low, &high); err != nil {
			return err
		}
		if n > target {
			c.say("rollout %s has executions for %d devices: its stages allow %d", r.ID, n, target)
		}
		if n > 0 && (low < 0 || high >= len(r.Stages)) {
			c.say("rollout %s has executions in stage index %d to %d of %d stages", r.ID, low, high, len(r.Stages))
		}
		return nil
	}, `SELECT COUNT(DISTINCT device_id), COALESCE(MIN(stage), 0), COALESCE(MAX(stage), 0) FROM executions WHERE rollout_id = ?`, r.ID)
}

// line holds the line of a continuous rollout against its stages: every turn is there,
// and every device that has an execution stands in it.
func (c *checker) line(r ota.Rollout, target int) error {
	return c.each(func(row row) error {
		var turns, high, standing, reached int
		if err := row.Scan(&turns, &high, &standing, &reached); err != nil {
			return err
		}
		if turns != target || high != target || standing != r.Population || reached > 0 {
			c.say("rollout %s has a line of %d turns up to %d for %d devices beside a target of %d and a population of %d, and executions of %d others", r.ID, turns, high, standing, target, r.Population, reached)
		}
		return nil
	}, `SELECT COUNT(*), COALESCE(MAX(turn), -1) + 1, COUNT(standing), (SELECT COUNT(*) FROM executions e WHERE e.rollout_id = ? AND NOT EXISTS
		(SELECT 1 FROM candidates s WHERE s.rollout_id = e.rollout_id AND s.line = ? AND s.device_id = e.device_id AND s.standing IS NOT NULL))
		FROM candidates WHERE rollout_id = ? AND line = ?`, r.ID, r.Line, r.ID, r.Line)
}

func (c *checker) shadows() error {
	return c.each(func(r row) error {
		var device, name, text, digest string
		var version int64
		if err := r.Scan(&device, &name, &version, &text, &digest); err != nil {
			return err
		}
		doc, err := shadow.ParseDocument(text)
		if err != nil {
			c.say("shadow %q of device %s can not be read: %v", name, device, err)
		} else if doc.Version != version || !doc.Exists() {
			c.say("shadow %q of device %s has version %d beside a document of version %d", name, device, version, doc.Version)
		}
		if reported := fleet.ReportedDigest(doc); name == "" && digest != reported {
			c.say("device %s is kept as running %q, its shadow says %q", device, digest, reported)
		}
		return nil
	}, `SELECT s.device_id, s.name, s.version, s.document, d.firmware_digest FROM shadows s JOIN devices d ON d.id = s.device_id WHERE s.document <> ''`)
}

const selectTexts = `SELECT 'tags of device ' || id, tags FROM devices
	UNION ALL SELECT 'tags of enrollment token ' || id, tags FROM enrollment_tokens
	UNION ALL SELECT 'keys of JWT issuer ' || name, keys FROM jwt_issuers
	UNION ALL SELECT 'types of webhook ' || id, types FROM webhooks
	UNION ALL SELECT 'body of dead letter ' || webhook_id || ' ' || CAST(seq AS TEXT), body FROM webhook_dead
	UNION ALL SELECT 'details of execution ' || rollout_id || ' on ' || device_id, details FROM executions WHERE details <> '{}'
	UNION ALL SELECT 'manifest of release ' || name || '@' || version, manifest FROM releases`

func (c *checker) texts() error {
	return c.each(func(r row) error {
		var what, text string
		if err := r.Scan(&what, &text); err != nil {
			return err
		}
		if !json.Valid([]byte(text)) {
			c.say("%s are not JSON", what)
		}
		return nil
	}, selectTexts)
}

// checkedGroup is a dynamic group, and how far it is filled while it is building.
type checkedGroup struct {
	dynamicGroup
	building bool
	filled   string
}

// groups holds the members of every dynamic group against its selector. It
// looks at each device once, whatever an index says.
func (c *checker) groups() error {
	var groups []checkedGroup
	err := c.each(func(r row) error {
		var name, expr string
		var filled sql.NullString
		if err := r.Scan(&name, &expr, &filled); err != nil {
			return err
		}
		sel, err := fleet.ParseGroupSelector(expr)
		if err != nil {
			c.say("group %s has a selector that can not be read: %v", name, err)
			return nil
		}
		groups = append(groups, checkedGroup{dynamicGroup{name: name, sel: sel}, filled.Valid, filled.String})
		return nil
	}, `SELECT name, selector, filled_to FROM device_groups WHERE dynamic = 1 ORDER BY name`)
	if err != nil || len(groups) == 0 {
		return err
	}
	query := "SELECT " + viewColumns + itsGroups + " FROM " + anyShadow + withSeen
	return c.each(func(r row) error {
		v, err := scanView(r)
		if err != nil {
			c.say("device %s can not be read: %v", v.ID, err)
			return nil
		}
		for _, g := range groups {
			has, should := slices.Contains(v.Groups, g.name), g.matches(v.Device, v.Shadow)
			if has != should && (has || !g.building || v.ID <= g.filled) {
				c.say("device %s is in dynamic group %s: %v, its selector says %v", v.ID, g.name, has, should)
			}
		}
		return nil
	}, query)
}
