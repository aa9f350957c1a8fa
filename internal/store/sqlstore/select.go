package sqlstore

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/selector"
)

// pageRows is how many rows an iteration reads at a time: a slow caller holds
// no transaction open, and memory stays flat. The first page of devices has
// firstRows, for callers that want only a few, and each after it twice as many.
const (
	pageRows  = 1000
	firstRows = 64
)

// fewRows is up to how many rows of an index are worth sorting by device for
// every page; of more, devices in order are looked through for matches.
const fewRows = 5000

const (
	viewColumns = deviceColumns + `, s.document, `
	withSeen    = ` LEFT JOIN device_seen l ON l.device_id = d.id LEFT JOIN device_connections c ON c.device_id = d.id`
	noGroups    = `CAST(NULL AS TEXT)`
	itsGroups   = `(SELECT string_agg(m.group_name, ',' ORDER BY m.group_name) FROM group_members m WHERE m.device_id = d.id)`
	anyShadow   = `devices d LEFT JOIN shadows s ON s.device_id = d.id AND s.name = '' AND s.deleted_at IS NULL`
	theShadow   = `shadows s JOIN devices d ON d.id = s.device_id`
	liveShadow  = `(s.name = '' AND s.deleted_at IS NULL)`
)

// Devices implements fleet.DeviceStore.
func (s *Store) Devices(ctx context.Context, after string, f func(fleet.DeviceView) bool) error {
	return s.SelectDevices(ctx, fleet.DeviceQuery{After: after}, f)
}

// SelectDevices implements fleet.DeviceStore. The query narrows, Match decides.
func (s *Store) SelectDevices(ctx context.Context, q fleet.DeviceQuery, f func(fleet.DeviceView) bool) error {
	p, err := s.plan(ctx, q)
	if err != nil {
		return fmt.Errorf("select devices: %w", err)
	}
	return s.eachView(ctx, p, f)
}

// eachView calls f for the devices of the plan that match.
func (s *Store) eachView(ctx context.Context, p plan, f func(fleet.DeviceView) bool) error {
	after := p.query.After
	for size := firstRows; ; size = min(2*size, pageRows) {
		page := make([]fleet.DeviceView, 0, size)
		err := s.adhoc(ctx, func(r row) error {
			v, err := scanView(r)
			page = append(page, v)
			return err
		}, p.page(after, size))
		if err != nil {
			return fmt.Errorf("read devices: %w", err)
		}
		for _, v := range page {
			if err := ctx.Err(); err != nil {
				return err
			}
			if p.query.Match(v) && !f(v) {
				return nil
			}
		}
		if len(page) < size {
			return nil
		}
		after = page[len(page)-1].ID
	}
}

// CountDevices implements fleet.DeviceStore. What is certain is counted by the
// database, the rest is looked at.
func (s *Store) CountDevices(ctx context.Context, q fleet.DeviceQuery) (int, error) {
	p, err := s.plan(ctx, q)
	if err != nil {
		return 0, fmt.Errorf("count devices: %w", err)
	}
	var certain, doubtful int
	err = s.adhoc(ctx, func(r row) error {
		var n, m int
		err := r.Scan(&n, &m)
		certain, doubtful = certain+n, doubtful+m
		return err
	}, p.count())
	if err != nil {
		return 0, fmt.Errorf("count devices: %w", err)
	}
	if doubtful == 0 {
		return certain, nil
	}
	err = s.eachView(ctx, p.doubtful(), func(fleet.DeviceView) bool {
		certain++
		return true
	})
	return certain, err
}

// adhoc is rows for a query that is made for this one call.
func (s *Store) adhoc(ctx context.Context, f func(row) error, query Condition) error {
	rows, err := s.config.Reader.QueryContext(ctx, s.config.Dialect.Rebind(query.SQL), query.Args...)
	if err != nil {
		return s.away(ctx, err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := f(rows); err != nil {
			return err
		}
	}
	return s.away(ctx, rows.Err())
}

// plan is how a query is put to the database: as parts that have no row in
// common.
type plan struct {
	query fleet.DeviceQuery
	parts []part
}

// part is one SELECT of a query: its tables, the column that orders it, what
// leads to its rows, and the bounds of those that match.
type part struct {
	from, id string
	lead     Condition
	Bounds
	groups    string // what to read of the groups of a device
	countFrom string // the tables to count in, when they are fewer
}

// plan chooses where a query begins: at an index, when the selector cannot hold
// without what is looked up there, else at the devices in order.
func (s *Store) plan(ctx context.Context, q fleet.DeviceQuery) (plan, error) {
	w, root := where{s.config.Dialect.JSON}, q.Selector.Root()
	base := part{from: anyShadow, id: "d.id", lead: always, Bounds: Exactly(always), groups: noGroups}
	if q.Selector.Asks(selector.Groups) {
		base.groups = itsGroups
		if err := s.wholeGroups(ctx, q.Selector); err != nil {
			return plan{}, err
		}
	}
	if needsShadow(root) {
		base.from, base.id, base.lead = theShadow, "s.device_id", Condition{SQL: liveShadow}
	}
	main := base
	rest := flat[selector.And](root)
	found, err := s.seek(ctx, w, rest)
	switch {
	case err != nil:
		return plan{}, err
	case found != nil:
		main = found.part(base)
		if found.Exact {
			rest = slices.Delete(slices.Clone(rest), found.node, found.node+1)
		}
	default:
		main.lead = both(main.lead, w.mentioned(root))
	}
	if root != nil && len(rest) > 0 {
		main.Bounds = w.list(both, rest)
	}
	indexed := ""
	if found != nil {
		indexed = found.column
	}
	p := plan{query: q, parts: w.apart(main, base, q.Selector.Fields(), indexed)}
	if base.from == theShadow && q.Revoked == nil && !asksDevice(q.Selector) {
		for i := range p.parts {
			p.parts[i].countFrom = "shadows s"
		}
	}
	if q.Revoked != nil {
		revoked := Condition{SQL: "d.revoked_at IS NULL"}
		if *q.Revoked {
			revoked.SQL = "d.revoked_at IS NOT NULL"
		}
		for i := range p.parts {
			p.parts[i].lead = both(p.parts[i].lead, revoked)
		}
	}
	return p, nil
}

// asksDevice reports whether the selector needs more of a device than its shadow.
func asksDevice(s selector.Selector) bool {
	return slices.ContainsFunc(s.Fields(), func(f selector.Field) bool {
		return f.Source != selector.Reported && f.Source != selector.Desired
	})
}

// apart returns the main part, and one of the rows that it can not judge for
// each column that the database may be unable to read. An index of the main part
// holds none of those.
func (w where) apart(main, base part, fields []selector.Field, indexed string) []part {
	parts := []part{main}
	seen := map[string]bool{}
	for _, f := range fields {
		column, _ := columnOf(f)
		if column == "" || seen[column] {
			continue
		}
		seen[column] = true
		opaque := w.json.Opaque(column)
		if opaque.SQL == "" {
			continue
		}
		other := base
		other.lead, other.Bounds = both(base.lead, opaque), Bounds{always, never}
		for _, earlier := range parts[1:] {
			other.lead = both(other.lead, notTrue(earlier.lead))
		}
		if column != indexed {
			parts[0].lead = both(parts[0].lead, notTrue(opaque))
		}
		parts = append(parts, other)
	}
	return parts
}

// page is the rows that may match after the given id, in its order.
func (p plan) page(after string, size int) Condition {
	if len(p.parts) == 1 {
		return p.parts[0].page(after, size)
	}
	list := make([]Condition, len(p.parts))
	for i, part := range p.parts {
		list[i] = Say("SELECT * FROM (?) AS p", part.page(after, size))
	}
	return Say("? ORDER BY id LIMIT ?", union(list), size)
}

func (q part) page(after string, size int) Condition {
	return Say("SELECT "+viewColumns+q.groups+" FROM "+q.from+withSeen+" WHERE "+q.id+" > ? AND ? AND ? ORDER BY "+q.id+" LIMIT ?",
		after, q.lead, q.Upper, size)
}

// count is rows of two numbers to add up: how many match for certain, and how
// many may.
func (p plan) count() Condition {
	list := make([]Condition, len(p.parts))
	for i, q := range p.parts {
		from, where := cmp.Or(q.countFrom, q.from), Say(q.id+" > ? AND ? AND ?", p.query.After, q.lead, q.Upper)
		if q.Upper.SQL == q.Lower.SQL {
			list[i] = Say("SELECT COUNT(*), 0 FROM "+from+" WHERE ?", where)
			continue
		}
		list[i] = Say("SELECT COALESCE(SUM(CASE WHEN ? THEN 1 ELSE 0 END), 0), COALESCE(SUM(CASE WHEN ? THEN 0 ELSE 1 END), 0) FROM "+
			from+" WHERE ?", q.Lower, q.Lower, where)
	}
	return union(list)
}

// doubtful is the plan of the rows between the bounds.
func (p plan) doubtful() plan {
	between := plan{query: p.query}
	for _, q := range p.parts {
		if q.Upper.SQL != q.Lower.SQL {
			q.Upper = both(q.Upper, notTrue(q.Lower))
			between.parts = append(between.parts, q)
		}
	}
	return between
}

func union(list []Condition) Condition {
	all := list[0]
	for _, c := range list[1:] {
		all = Say("? UNION ALL ?", all, c)
	}
	return all
}

// sought is what an index is asked for, for the comparison at place node of the
// list.
type sought struct {
	Lookup
	column string
	node   int
}

// seek returns the index where a query for what satisfies all the nodes begins,
// nil when there is none for it. One that has the rows in order is best; of one
// that does not, there must be few.
func (s *Store) seek(ctx context.Context, w where, nodes []selector.Node) (*sought, error) {
	var unordered []sought
	for i, n := range nodes {
		c, ok := n.(selector.Comparison)
		if !ok || !s.indexed(c.Field) {
			continue
		}
		column, path := columnOf(c.Field)
		found := sought{w.lookup(w.json.At(column, path, true), c), column, i}
		switch {
		case found.Ordered:
			return &found, nil
		case found.SQL != "":
			unordered = append(unordered, found)
		}
	}
	for _, found := range unordered {
		if few, err := s.few(ctx, found); few || err != nil {
			return &found, err
		}
	}
	return nil, nil
}

// lookup is what the comparison asks an index for.
func (w where) lookup(v JSONValue, c selector.Comparison) Lookup {
	value := c.Value
	if value.Kind == selector.Number {
		return v.Seek(c.Op, value)
	}
	if value.Text == "true" || value.Text == "false" || !w.json.Holds(value.Text) {
		return Lookup{}
	}
	if c.Op != selector.Equal {
		return v.Seek(c.Op, value)
	}
	part, openStart, openEnd := c.Wildcard()
	value.Text = part
	switch {
	case openStart:
		return Lookup{}
	case !openEnd:
		return v.Seek(selector.Equal, value)
	}
	from := v.Seek(selector.GreaterEqual, value)
	value.Text = after(part)
	to := v.Seek(selector.LessEqual, value)
	if from.SQL == "" || to.SQL == "" || value.Text == "" {
		return Lookup{}
	}
	return Lookup{Condition: both(from.Condition, to.Condition)}
}

// part is base from the index on. From an index on devices the shadow comes
// second, so it is joined as if it might not be there.
func (f sought) part(base part) part {
	q := part{from: anyShadow, id: "d.id", lead: f.Condition, Bounds: base.Bounds, groups: base.groups}
	if f.column == "s.document" { // only live shadows are in the index
		q.from, q.id, q.lead = theShadow, "s.device_id", both(Condition{SQL: "s.name = ''"}, f.Condition)
	}
	if !f.Ordered {
		q.id = "(" + q.id + " || '')" // not a column, so that no index on devices draws the query away
	}
	return q
}

// few reports whether the index has few enough rows to sort.
func (s *Store) few(ctx context.Context, f sought) (few bool, err error) {
	from := "devices d WHERE ?"
	if f.column == "s.document" {
		from = "shadows s WHERE s.name = '' AND ?"
	}
	var n int
	err = s.adhoc(ctx, func(r row) error { return r.Scan(&n) },
		Say("SELECT COUNT(*) FROM (SELECT 1 FROM "+from+" LIMIT ?) AS n", f.Condition, fewRows+1))
	return n <= fewRows, err
}
