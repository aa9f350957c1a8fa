package storetest

import (
	"errors"
	"fmt"

	"github.com/otad/otad/internal/fleet"
)

func (s *suite) group(name, selector string) {
	s.Helper()
	s.must(makeGroup(s, fleet.Group{Name: name, Dynamic: true, Selector: selector, CreatedAt: epoch}, nil))
}

// makeGroup makes a group with all of its members.
func makeGroup(s fleet.GroupStore, g fleet.Group, members []string) error {
	if err := s.CreateGroup(ctx, g, members); err != nil {
		return err
	}
	return fleet.FillGroup(ctx, s, g.Name)
}

func (s *suite) members(name string) []string {
	s.Helper()
	ids, err := s.GroupMembers(ctx, name, "", 1000)
	s.must(err)
	g, err := s.Group(ctx, name)
	s.must(err)
	s.equal("number of members", g.Members, len(ids))
	return ids
}

var groupTests = []test{
	{"static groups have the members they are given", func(s *suite) {
		s.enrolled("a", "b", "c")
		s.must(s.CreateGroup(ctx, fleet.Group{Name: "lab", CreatedAt: epoch}, []string{"b", "a", "b"}))
		s.equal("members", s.members("lab"), []string{"a", "b"})
		s.must(s.ChangeMembers(ctx, "lab", []string{"c", "b"}, []string{"a", "nobody"}))
		s.equal("changed", s.members("lab"), []string{"b", "c"})
		s.must(s.ChangeMembers(ctx, "lab", []string{"a"}, []string{"a"}))
		s.equal("removed and added", s.members("lab"), []string{"a", "b", "c"})
		ids, err := s.GroupMembers(ctx, "lab", "a", 1)
		s.must(err)
		s.equal("a page", ids, []string{"b"})
		s.wantErr(s.ChangeMembers(ctx, "lab", []string{"nobody"}, []string{"a"}), fleet.ErrNotFound)
		s.equal("unchanged", s.members("lab"), []string{"a", "b", "c"})
		s.wantErr(s.CreateGroup(ctx, fleet.Group{Name: "lab", CreatedAt: epoch}, nil), fleet.ErrConflict)
		s.wantErr(s.CreateGroup(ctx, fleet.Group{Name: "other", CreatedAt: epoch}, []string{"nobody"}), fleet.ErrNotFound)
		_, err = s.Group(ctx, "other")
		s.wantErr(err, fleet.ErrNotFound)
		s.must(s.CreateGroup(ctx, fleet.Group{Name: "empty", CreatedAt: epoch}, nil))
		list, err := s.Groups(ctx)
		s.must(err)
		s.equal("groups", list, []fleet.Group{{Name: "empty", CreatedAt: kept}, {Name: "lab", CreatedAt: kept, Members: 3}})
		groups, err := s.DeviceGroups(ctx, "b")
		s.must(err)
		s.equal("groups of b", groups, []string{"lab"})
		s.must(s.DeleteGroup(ctx, "lab"))
		groups, err = s.DeviceGroups(ctx, "b")
		s.must(err)
		s.equal("groups of b", groups, []string(nil))
	}},
	{"what is not there is not found", func(s *suite) {
		_, err := s.Group(ctx, "nope")
		s.wantErr(err, fleet.ErrNotFound)
		_, err = s.GroupMembers(ctx, "nope", "", 10)
		s.wantErr(err, fleet.ErrNotFound)
		_, err = s.DeviceGroups(ctx, "nope")
		s.wantErr(err, fleet.ErrNotFound)
		s.wantErr(s.DeleteGroup(ctx, "nope"), fleet.ErrNotFound)
		s.wantErr(s.ChangeMembers(ctx, "nope", nil, nil), fleet.ErrNotFound)
	}},
	{"dynamic groups follow the devices", func(s *suite) {
		s.enrolled("a", "b", "c")
		s.update("a", "", "k", "x")
		s.group("x", `shadow.reported.k = "x"`)
		s.group("not", `NOT shadow.reported.k = "x" AND hardware = "board-a"`)
		s.group("all", ``)
		s.equal("filled", s.members("x"), []string{"a"})
		s.equal("filled", s.members("not"), []string{"b", "c"})
		s.update("b", "", "k", "x")
		s.update("a", "", "k", "y")
		s.update("c", "named", "k", "x")
		s.equal("after updates", s.members("x"), []string{"b"})
		s.equal("after updates", s.members("not"), []string{"a", "c"})
		_, err := s.DeleteShadow(ctx, "b", "", epoch)
		s.must(err)
		s.enrolled("d")
		s.equal("after delete and enrollment", s.members("x"), []string(nil))
		s.equal("after delete and enrollment", s.members("not"), []string{"a", "b", "c", "d"})
		s.equal("all", s.members("all"), []string{"a", "b", "c", "d"})
		groups, err := s.DeviceGroups(ctx, "d")
		s.must(err)
		s.equal("groups of d", groups, []string{"all", "not"})
		s.wantErr(s.ChangeMembers(ctx, "x", []string{"a"}, nil), fleet.ErrConflict)
		s.wantErr(s.CreateGroup(ctx, fleet.Group{Name: "nested", Dynamic: true, Selector: "groups:x", CreatedAt: epoch}, nil), fleet.ErrInvalid)
		s.must(s.CreateDevice(ctx, fleet.Device{ID: "e", Hardware: "board-a", CreatedAt: epoch}))
		s.equal("after another device is made", s.members("all"), []string{"a", "b", "c", "d", "e"})
		s.equal("after another device is made", s.members("not"), []string{"a", "b", "c", "d", "e"})
		s.must(s.DeleteGroup(ctx, "not"))
		s.update("b", "", "k", "x")
		s.equal("after another is deleted", s.members("x"), []string{"b"})
	}},
	{"dynamic groups follow tags", func(s *suite) {
		s.enrolled("a", "b")
		s.update("b", "", "k", "x")
		s.group("site", `tags.site = "paris"`)
		s.group("both", `tags.site = "paris" AND shadow.reported.k = "x"`)
		s.group("none", `NOT tags:site`)
		s.must(s.ChangeTags(ctx, "a", map[string]string{"site": "paris", "ring": "1"}, nil))
		s.must(s.ChangeTags(ctx, "b", map[string]string{"site": "paris"}, []string{"never-there"}))
		s.equal("of one tag", s.members("site"), []string{"a", "b"})
		s.equal("of a tag and the shadow", s.members("both"), []string{"b"})
		s.equal("without the tag", s.members("none"), []string(nil))
		s.update("a", "", "k", "x")
		s.equal("after an update", s.members("both"), []string{"a", "b"})
		s.must(s.ChangeTags(ctx, "a", nil, []string{"site"}))
		s.equal("of one tag", s.members("site"), []string{"b"})
		s.equal("of a tag and the shadow", s.members("both"), []string{"b"})
		s.equal("without the tag", s.members("none"), []string{"a"})
		d, err := s.Device(ctx, "a")
		s.must(err)
		s.equal("tags", d.Tags, map[string]string{"ring": "1"})
		s.must(s.ChangeTags(ctx, "a", nil, []string{"ring"}))
		d, err = s.Device(ctx, "a")
		s.must(err)
		s.equal("no tags", len(d.Tags), 0)
		s.wantErr(s.ChangeTags(ctx, "nobody", map[string]string{"site": "paris"}, nil), fleet.ErrNotFound)
		s.wantErr(s.ChangeTags(ctx, "a", map[string]string{"site": "x"}, []string{"site"}), fleet.ErrInvalid)
	}},
	{"a device has an end of tags", func(s *suite) {
		s.enrolled("a")
		tags := map[string]string{}
		for i := range fleet.MaxTags {
			tags[fmt.Sprint("t", i)] = "x"
		}
		s.must(s.ChangeTags(ctx, "a", tags, nil))
		s.wantErr(s.ChangeTags(ctx, "a", map[string]string{"more": "x"}, nil), fleet.ErrInvalid)
		s.must(s.ChangeTags(ctx, "a", map[string]string{"more": "x"}, []string{"t0"}))
	}},
	{"a group is filled while devices change", func(s *suite) {
		const n = 2500 // more than are held against a group at a time
		id := func(i int) string { return fmt.Sprintf("d%04d", i) }
		s.wins(together(n, func(i int) error { return s.CreateDevice(ctx, fleet.Device{ID: id(i), CreatedAt: epoch}) }), nil)
		s.must(s.CreateGroup(ctx, fleet.Group{Name: "odd", Dynamic: true, Selector: `tags.odd = "yes"`, CreatedAt: epoch}, nil))
		changed := []int{1, 999, 1001, 1999, 2001, n - 1}
		for whole := false; !whole; {
			g, err := s.Group(ctx, "odd")
			s.must(err)
			if g.Building {
				_, err := s.CountDevices(ctx, fleet.DeviceQuery{Selector: s.parse("NOT groups:odd")})
				s.wantErr(err, fleet.ErrConflict)
			}
			errs := together(len(changed)+1, func(i int) (err error) {
				if i == len(changed) {
					whole, err = s.FillGroup(ctx, "odd")
					return err
				}
				return errors.Join(s.ChangeTags(ctx, id(changed[i]), map[string]string{"odd": "yes"}, nil),
					s.ChangeTags(ctx, id(changed[i]-1), map[string]string{"odd": "yes"}, nil),
					s.ChangeTags(ctx, id(changed[i]-1), map[string]string{"odd": "no"}, nil))
			})
			s.equal("done", s.wins(errs, nil), len(errs))
		}
		var want []string
		for _, i := range changed {
			want = append(want, id(i))
		}
		s.equal("members", s.members("odd"), want)
		whole, err := s.FillGroup(ctx, "odd")
		s.must(err)
		s.equal("whole", whole, true)
		_, err = s.FillGroup(ctx, "nope")
		s.wantErr(err, fleet.ErrNotFound)
	}},
	{"a device changes twice around the filling of a group", func(s *suite) {
		s.enrolled("a")
		s.must(s.CreateGroup(ctx, fleet.Group{Name: "g", Dynamic: true, Selector: `tags.k = "in"`, CreatedAt: epoch}, nil))
		tag := func(value string) func() {
			return func() { s.must(s.ChangeTags(ctx, "a", map[string]string{"k": value}, nil)) }
		}
		s.inOneBatch(tag("in"), func() {
			_, err := s.FillGroup(ctx, "g")
			s.must(err)
		}, tag("out"))
		s.equal("members", s.members("g"), []string(nil))
	}},
	{"tags, updates and new groups at once", func(s *suite) {
		ids := []string{"a", "b", "c", "d"}
		s.enrolled(ids...)
		errs := together(80, func(i int) error {
			switch {
			case i%10 == 0:
				return makeGroup(s, fleet.Group{Name: fmt.Sprint("g", i), Dynamic: true, Selector: fmt.Sprintf(`shadow.reported.k >= "%02d" AND tags.k >= "%02[1]d"`, i), CreatedAt: epoch}, nil)
			case i%2 == 0:
				return s.ChangeTags(ctx, ids[i%4], map[string]string{"k": fmt.Sprintf("%02d", 79-i)}, nil)
			}
			_, err := s.UpdateShadow(ctx, ids[i/2%4], "", reported("k", fmt.Sprintf("%02d", i)), epoch)
			return err
		})
		s.equal("done", s.wins(errs, nil), 80)
	}},
	{"selectors ask for groups", func(s *suite) {
		s.enrolled("a", "b", "c")
		s.update("b", "", "k", "x")
		s.group("x", `shadow.reported.k = "x"`)
		s.must(s.CreateGroup(ctx, fleet.Group{Name: "lab", CreatedAt: epoch}, []string{"b", "c"}))
		for expr, want := range map[string][]string{
			`groups:x`: {"b"}, `groups:"lab"`: {"b", "c"}, `groups:lab AND NOT groups:x`: {"c"}, `groups:*`: {"b", "c"}, `-groups:*`: {"a"},
			`groups:nope`: nil, `groups:lab AND shadow.reported.k:*`: {"b"}, `groups:"l"`: nil,
		} {
			s.equal(expr, s.selected(fleet.DeviceQuery{Selector: s.parse(expr)}), want)
		}
	}},
	{"updates and new groups at once", func(s *suite) {
		ids := []string{"a", "b", "c", "d"}
		s.enrolled(ids...)
		errs := together(80, func(i int) error {
			if i%10 == 0 {
				return makeGroup(s, fleet.Group{Name: fmt.Sprint("g", i), Dynamic: true, Selector: fmt.Sprintf(`shadow.reported.k >= "%02d"`, i), CreatedAt: epoch}, nil)
			}
			_, err := s.UpdateShadow(ctx, ids[i%4], "", reported("k", fmt.Sprintf("%02d", i)), epoch)
			return err
		})
		s.equal("done", s.wins(errs, nil), 80)
	}},
	{"there is an end to groups", func(s *suite) {
		for i := range fleet.MaxDynamicGroups {
			s.group(fmt.Sprint("d", i), "id = x")
		}
		s.wantErr(s.CreateGroup(ctx, fleet.Group{Name: "more", Dynamic: true, CreatedAt: epoch}, nil), fleet.ErrConflict)
		s.must(s.CreateGroup(ctx, fleet.Group{Name: "static", CreatedAt: epoch}, nil))
		errs := together(fleet.MaxGroups-fleet.MaxDynamicGroups-1, func(i int) error {
			return s.CreateGroup(ctx, fleet.Group{Name: fmt.Sprint("s", i), CreatedAt: epoch}, nil)
		})
		s.wins(errs, nil)
		s.wantErr(s.CreateGroup(ctx, fleet.Group{Name: "more", CreatedAt: epoch}, nil), fleet.ErrConflict)
	}},
}
