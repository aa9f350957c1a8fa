package fleet

import (
	"time"

	"github.com/otad/otad/pkg/selector"
	"github.com/otad/otad/pkg/shadow"
)

// DeviceQuery says which devices are meant. The zero value means all.
type DeviceQuery struct {
	Selector selector.Selector
	After    string // only ids after this one, byte by byte
	Revoked  *bool  // only those that are revoked, or only those that are not
}

// Match reports whether the query is about the device. It is what a store's own
// query has to agree with.
func (q DeviceQuery) Match(v DeviceView) bool {
	return v.ID > q.After && (q.Revoked == nil || *q.Revoked == v.Revoked()) && q.Selector.Match(Facts(v))
}

// Facts shows a device to a selector.
func Facts(v DeviceView) selector.Facts { return facts{&v} }

type facts struct{ v *DeviceView }

func (f facts) Online() (online, known bool) {
	return f.v.Connection.Connected, f.v.Connection.Known()
}
func (f facts) LastSeen() time.Time     { return f.v.LastSeen }
func (f facts) Groups() []string        { return f.v.Groups }
func (f facts) ID() string              { return f.v.ID }
func (f facts) Hardware() string        { return f.v.Hardware }
func (f facts) Tags() map[string]string { return f.v.Tags }

func (f facts) Desired(path []string) (any, bool)  { return plainAt(f.v.Shadow.Desired, path) }
func (f facts) Reported(path []string) (any, bool) { return plainAt(f.v.Shadow.Reported, path) }

func plainAt(section shadow.Object, path []string) (any, bool) {
	v, ok := section.At(path...)
	if !ok {
		return nil, false
	}
	return v.Plain(), true
}
