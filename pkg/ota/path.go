package ota

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// MaxPath is how many releases a device may have to install one after the other to
// come to that of a rollout, with that one.
const MaxPath = 8

// Paths says by which releases devices come to one that not every device may take
// at once, see Manifest.Needs. It is for one goroutine.
type Paths struct {
	target Release
	signed []Release              // what can be passed through
	runs   map[string]ReleaseID   // what a device runs, by the digest of the image
	secure map[ReleaseID]int64    // security versions
	levels map[string][][]Release // by hardware; of level i, who takes one of it is i releases away from the target
	known  map[Position]Path      // what was found already
	parsed map[string]Version     // versions
}

// Position is where a device stands: its hardware model, and the digest of the image
// that it says it runs; empty: it does not say.
type Position struct{ Hardware, Digest string }

// Path is how a device comes to a release. Via are the releases that it passes
// through, in order; none: it takes the release at once. Stay says why it can not
// come there; empty: it can.
type Path struct {
	Via  []ReleaseID
	Stay string
}

// NewPaths returns the paths to the target over the signed ones of all releases. An
// error says that releases need each other in a circle, and which.
func NewPaths(target Release, releases []Release) (*Paths, error) {
	p := &Paths{
		target: target, runs: map[string]ReleaseID{}, secure: map[ReleaseID]int64{}, levels: map[string][][]Release{}, known: map[Position]Path{},
		parsed: map[string]Version{},
	}
	for _, r := range releases {
		if r.State == ReleaseDraft {
			continue
		}
		if of, ok := p.runs[r.ImageDigest]; !ok || p.lower(r.ID(), of) {
			p.runs[r.ImageDigest] = r.ID()
			p.secure[r.ID()] = r.SecurityVersion
		}
		if r.State == ReleaseSigned && r.ID() != target.ID() && p.version(r.Version).Ordered() { // no other could suffice
			p.signed = append(p.signed, r)
		}
	}
	slices.SortFunc(p.signed, p.rather)
	return p, p.circle()
}

// Ways returns every position from which there is a path, with that.
func (p *Paths) Ways() []Way {
	var ways []Way
	for _, hardware := range p.target.HardwareIDs {
		for _, digest := range slices.Sorted(maps.Keys(p.runs)) {
			at := Position{hardware, digest}
			if path := p.From(at); path.Stay == "" {
				ways = append(ways, Way{at, path.Via})
			}
		}
	}
	return ways
}

// Opened returns the positions from which there is a path to a release after a change
// of the releases, and was none before, or another one. What needs nothing has none.
func Opened(goal Release, before, after []Release) (opened []Position) {
	if len(goal.Needs()) == 0 {
		return nil
	}
	was, _ := NewPaths(goal, before) // a circle that there was leads nowhere
	is, err := NewPaths(goal, after)
	if err != nil {
		return nil
	}
	for _, way := range is.Ways() {
		if old := was.From(way.Position); old.Stay != "" || !slices.Equal(old.Via, way.Via) {
			opened = append(opened, way.Position)
		}
	}
	return opened
}

// Way is how devices come to a release from a position.
type Way struct {
	Position
	Via []ReleaseID
}

// Follow returns the attempt that follows one: of the next leg of its path, or
// once more the same. A device that drifted begins anew, on the path from what it
// runs; so does one whose path is Blocked, by Detour.
func Follow(e Execution, anew Path) Execution {
	next := Execution{DeviceID: e.DeviceID, Stage: e.Stage, Attempt: e.Attempt + 1, Lane: e.Lane, From: e.From, Via: e.Via, Leg: e.leg()}
	switch e.Class {
	case ClassUnderway:
		next.Via = e.Via[1:]
		next.Leg++
	case ClassDrifted:
		next.Via = anew.Via
	}
	return next
}

// Detour is Follow for a device whose path is Blocked: it goes on from where it is, on
// another one.
func Detour(e Execution, anew Path) Execution {
	next := Follow(e, Path{})
	next.Via = anew.Via
	return next
}

// lower chooses between releases of one image: a device that runs it may have had
// it under any of their names, so the one of the target's firmware that promises the
// least counts.
func (p *Paths) lower(a, b ReleaseID) bool {
	if own := a.Name == p.target.Name; own != (b.Name == p.target.Name) {
		return own
	}
	return p.version(a.Version).before(p.version(b.Version))
}

// rather orders releases by which of them to pass through, if each would do: of the
// target's own firmware, and then the newest.
func (p *Paths) rather(a, b Release) int {
	own := func(r Release) int {
		if r.Name == p.target.Name {
			return 0
		}
		return 1
	}
	newer, _ := p.version(b.Version).Compare(p.version(a.Version))
	return cmp.Or(own(a)-own(b), cmp.Compare(a.Name, b.Name), newer, cmp.Compare(b.Version, a.Version))
}

func (p *Paths) version(s string) Version {
	v, ok := p.parsed[s]
	if !ok {
		v = ParseVersion(s)
		p.parsed[s] = v
	}
	return v
}

// Needed reports whether there is a device that may not take the target at once.
func (p *Paths) Needed() bool { return len(p.target.Needs()) > 0 }

// leads reports whether a device that runs one release may take the next on its way:
// it goes up only, and never below a security version that it has reached.
func (p *Paths) leads(from ReleaseID, next Release) bool {
	for _, need := range next.Needs() {
		if need.Name != from.Name || !p.version(from.Version).since(p.version(need.Version)) {
			return false
		}
	}
	return from.Name != next.Name || p.version(from.Version).before(p.version(next.Version))
}

// passable reports whether a release may stand before the target.
func (p *Paths) passable(r Release) bool {
	return r.Name != p.target.Name || p.version(r.Version).before(p.version(p.target.Version))
}

// From returns the shortest path of devices that stand there. Of several the one
// over the newest releases is taken, so that the same devices always go the same way.
func (p *Paths) From(at Position) Path {
	if path, ok := p.known[at]; ok {
		return path
	}
	path := p.find(at)
	p.known[at] = path
	return path
}

func (p *Paths) find(at Position) Path {
	if !p.Needed() || at.Digest != "" && at.Digest == p.target.ImageDigest {
		return Path{}
	}
	runs, ok := p.runs[at.Digest]
	if !ok || at.Digest == "" {
		return Path{Stay: fmt.Sprintf("%s needs %s, and no release has the image that they say they run: upload it as one", p.target.ID(), p.needs())}
	}
	if p.target.Admits(runs) == nil {
		return Path{}
	}
	levels := p.reach(at.Hardware)
	for i := 1; i < len(levels); i++ {
		for _, next := range levels[i] {
			if p.leads(runs, next) && next.SecurityVersion >= p.secure[runs] && next.ImageDigest != at.Digest {
				return p.along(next, levels[:i])
			}
		}
	}
	return Path{Stay: fmt.Sprintf("%s needs %s, and no signed release leads there from %s: sign one that %s can take", p.target.ID(), p.needs(), runs, runs)}
}

func (p *Paths) needs() string {
	var words []string
	for _, need := range p.target.Needs() {
		words = append(words, need.orNewer())
	}
	return strings.Join(words, " and ")
}

// reach returns the releases by how many it takes from each to the target, which is
// the only one of level 0.
func (p *Paths) reach(hardware string) [][]Release {
	if levels, ok := p.levels[hardware]; ok {
		return levels
	}
	var left []Release
	for _, r := range p.signed {
		if r.Fits(hardware) && p.passable(r) {
			left = append(left, r)
		}
	}
	levels := [][]Release{{p.target}}
	for last := levels[0]; len(last) > 0; last = levels[len(levels)-1] {
		var level, rest []Release
		for _, r := range left {
			if slices.ContainsFunc(last, func(next Release) bool { return p.joins(r, next) }) {
				level = append(level, r)
			} else {
				rest = append(rest, r)
			}
		}
		levels, left = append(levels, level), rest
	}
	p.levels[hardware] = levels
	return levels
}

// joins reports whether one release stands before another on a path.
func (p *Paths) joins(r, next Release) bool {
	return p.leads(r.ID(), next) && r.SecurityVersion <= next.SecurityVersion && r.ImageDigest != next.ImageDigest
}

// along is the path that begins with a release, which stands right behind the given
// levels.
func (p *Paths) along(first Release, levels [][]Release) Path {
	path := Path{Via: []ReleaseID{first.ID()}}
	for at := first; len(levels) > 1; levels = levels[:len(levels)-1] {
		last := levels[len(levels)-1]
		at = last[slices.IndexFunc(last, func(next Release) bool { return p.joins(at, next) })]
		path.Via = append(path.Via, at.ID())
	}
	if n := len(path.Via) + 1; n > MaxPath {
		return Path{Stay: fmt.Sprintf("they would have to install %d releases one after the other, at most %d: upload one that needs less", n, MaxPath)}
	}
	return path
}

// circle says which releases the target can never follow, on no hardware of its own,
// since each of them needs that the next is there, and the last one the target. What
// devices run plays no part in it.
func (p *Paths) circle() error {
	var circle error
	for _, hardware := range p.target.HardwareIDs {
		fit := slices.DeleteFunc(slices.Clone(p.signed), func(r Release) bool { return !r.Fits(hardware) })
		if p.rooted(fit) {
			return nil
		}
		circle = cmp.Or(circle, p.circleOf(fit))
	}
	return circle
}

// circleOf is the circle among releases for one hardware.
func (p *Paths) circleOf(fit []Release) error {
	trail := map[ReleaseID][]ReleaseID{p.target.ID(): nil}
	for queue := []Release{p.target}; len(queue) > 0; queue = queue[1:] {
		r := queue[0]
		if p.leads(p.target.ID(), r) && r.ID() != p.target.ID() {
			return invalid("releases need each other in a circle: %s; upload a version of one of them that needs less", circleText(p.target.ID(), trail[r.ID()]))
		}
		for _, before := range fit {
			if _, seen := trail[before.ID()]; !seen && p.leads(before.ID(), r) {
				trail[before.ID()] = append(slices.Clip(trail[r.ID()]), before.ID())
				queue = append(queue, before)
			}
		}
	}
	return nil
}

func circleText(target ReleaseID, trail []ReleaseID) string {
	text := target.String() + " needs "
	for _, id := range trail {
		text += id.String() + ", which needs "
	}
	return text + target.String()
}

// rooted reports whether the target can follow a release, of those that fit, that needs
// nothing.
func (p *Paths) rooted(fit []Release) bool {
	var roots []Release
	left := append([]Release{p.target}, fit...)
	for {
		n := len(left)
		left = slices.DeleteFunc(left, func(r Release) bool {
			may := len(r.Needs()) == 0 || slices.ContainsFunc(roots, func(root Release) bool { return p.leads(root.ID(), r) })
			if may {
				roots = append(roots, r)
			}
			return may
		})
		if slices.ContainsFunc(roots, func(r Release) bool { return r.ID() == p.target.ID() }) {
			return true
		}
		if len(left) == n {
			return false
		}
	}
}
