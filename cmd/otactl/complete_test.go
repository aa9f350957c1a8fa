package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// saidElsewhere are the fields that -o json of a rollout leaves out: another says the
// same, or one of several is meant.
var saidElsewhere = []string{
	"spec.firmware", "spec.selector", "spec.seed", "spec.priority", "spec.in_progress_timeout", "spec.stages", "spec.abort", // those of the rollout
	"spec.health.signals",                       // with what was seen of each
	"health.verdicts.signal.margin",             // of a number of the shadow only
	"failures.rollout_id", "at_work.rollout_id", // of the rollout
	"stages.spec.count", "stages.spec.selector", // in place of a percentage
	"abort.share", "abort.min_sample", // in place of a count
	"spec.command.timeout.nanos", "spec.window.duration.nanos", // whole seconds
}

// Every field of a rollout comes through to -o json: changing it changes the text.
func TestRolloutJSONIsComplete(t *testing.T) {
	n := 0
	whole := &otadv1.Rollout{}
	fill(whole.ProtoReflect(), &n)
	for _, s := range whole.GetStages() {
		s.Spec.Count, s.Spec.Selector = 0, ""
	}
	before, seen := rolloutText(t, whole), 0
	for _, f := range leaves(whole.ProtoReflect(), "", func(root protoreflect.Message) protoreflect.Message { return root }) {
		if slices.ContainsFunc(saidElsewhere, func(p string) bool { return f.path == p || strings.HasPrefix(f.path, p+".") }) {
			continue
		}
		other := proto.CloneOf(whole)
		f.change(other.ProtoReflect())
		if seen++; rolloutText(t, other) == before {
			t.Errorf("-o json says nothing of %s", f.path)
		}
	}
	if seen < 100 {
		t.Errorf("only %d fields were looked at", seen)
	}
}

// leaf is a field that is no message, and what changes it in a message of its root's type.
type leaf struct {
	path   string
	change func(root protoreflect.Message)
}

// leaves returns the fields below m, which is at a place of its root.
func leaves(m protoreflect.Message, path string, at func(root protoreflect.Message) protoreflect.Message) (list []leaf) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		name := strings.TrimPrefix(path+"."+string(fd.Name()), ".")
		switch {
		case fd.IsMap():
			list = append(list, leaf{name, func(root protoreflect.Message) {
				at(root).Mutable(fd).Map().Set(protoreflect.ValueOfString("another").MapKey(), unlike(fd.MapValue(), protoreflect.Value{}))
			}})
		case fd.IsList() && fd.Message() != nil:
			list = append(list, leaves(m.Get(fd).List().Get(0).Message(), name, func(root protoreflect.Message) protoreflect.Message {
				return at(root).Mutable(fd).List().Get(0).Message()
			})...)
		case fd.IsList():
			list = append(list, leaf{name, func(root protoreflect.Message) {
				at(root).Mutable(fd).List().Append(unlike(fd, protoreflect.Value{}))
			}})
		case fd.Message() != nil:
			list = append(list, leaves(m.Get(fd).Message(), name, func(root protoreflect.Message) protoreflect.Message {
				return at(root).Mutable(fd).Message()
			})...)
		default:
			list = append(list, leaf{name, func(root protoreflect.Message) { at(root).Set(fd, unlike(fd, at(root).Get(fd))) }})
		}
	}
	return list
}

// fill sets every field, each to another value.
func fill(m protoreflect.Message, n *int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		*n++
		switch {
		case fd.IsMap():
			m.Mutable(fd).Map().Set(protoreflect.ValueOfString("key").MapKey(), scalar(fd.MapValue(), *n))
		case fd.IsList() && fd.Message() != nil:
			fill(m.Mutable(fd).List().AppendMutable().Message(), n)
		case fd.IsList():
			m.Mutable(fd).List().Append(scalar(fd, *n))
		case fd.Message() != nil:
			fill(m.Mutable(fd).Message(), n)
		default:
			m.Set(fd, scalar(fd, *n))
		}
	}
}

// unlike is another value than v for a field.
func unlike(fd protoreflect.FieldDescriptor, v protoreflect.Value) protoreflect.Value {
	for n := 1000; ; n++ {
		if other := scalar(fd, n); !v.IsValid() || !v.Equal(other) {
			return other
		}
	}
}

func scalar(fd protoreflect.FieldDescriptor, n int) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(n%2 == 0)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(fmt.Sprint("text-", n))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(int64(n))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(n) / 1024)
	}
	panic(fd.Kind())
}

func rolloutText(t *testing.T, r *otadv1.Rollout) string {
	t.Helper()
	b, err := json.Marshal(newRolloutView(r))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
