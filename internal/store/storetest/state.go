package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/otad/otad/internal/fleet"
)

// brokerState is what every store keeps for the embedded broker, beside
// fleet.Store.
type brokerState interface {
	SaveState(ctx context.Context, set map[string][]byte) error
	LoadState(ctx context.Context, f func(key string, value []byte) error) error
}

var stateTests = []test{
	{"save, load, overwrite, delete", func(s *suite) {
		s.state(map[string][]byte{}, nil)
		s.state(map[string][]byte{"b": []byte("2"), "a": {}, "é": {0, 255}, "B": []byte("3")}, map[string]string{"B": "3", "a": "", "b": "2", "é": "\x00\xff"})
		s.state(map[string][]byte{"a": []byte("new"), "b": nil, "never": nil}, map[string]string{"B": "3", "a": "new", "é": "\x00\xff"})
		s.state(map[string][]byte{"a": nil, "B": nil, "é": nil}, nil)
	}},
	{"keys come in the order of their bytes", func(s *suite) {
		set := map[string][]byte{}
		for _, key := range []string{"a", "A", "a/", "a-", "a0", "_", "z", "é", "\U0001f600", "10", "9", " "} {
			set[key] = []byte(key)
		}
		s.must(s.broker().SaveState(ctx, set))
		s.equal("order", s.stateKeys(), slices.Sorted(maps.Keys(set)))
	}},
	{"limits", func(s *suite) {
		longest, largest := strings.Repeat("k", fleet.MaxStateKeyBytes), bytes.Repeat([]byte{7}, fleet.MaxStateValueBytes)
		s.state(map[string][]byte{longest: largest}, map[string]string{longest: string(largest)})
		for _, bad := range []map[string][]byte{
			{"": {1}}, {longest + "k": {1}}, {"zero\x00byte": {1}}, {"\xff": {1}}, {"fine": {1}, "large": append(largest, 7)},
		} {
			s.wantErr(s.broker().SaveState(ctx, bad), fleet.ErrInvalid)
		}
		s.equal("keys", s.stateKeys(), []string{longest})
	}},
	{"a load ends with the error of its caller", func(s *suite) {
		s.must(s.broker().SaveState(ctx, map[string][]byte{"a": {1}, "b": {2}, "c": {3}}))
		enough, n := errors.New("enough"), 0
		err := s.broker().LoadState(ctx, func(key string, value []byte) error {
			if n++; n == 2 {
				return enough
			}
			return nil
		})
		if err != enough || n != 2 {
			s.Fatalf("%v after %d", err, n)
		}
	}},
	{"cancelled", func(s *suite) {
		gone, cancel := context.WithCancel(ctx)
		cancel()
		s.wantErr(s.broker().SaveState(gone, map[string][]byte{"a": {1}}), context.Canceled)
		s.state(nil, nil)
		s.must(s.broker().SaveState(ctx, map[string][]byte{"a": {1}}))
		s.wantErr(s.broker().LoadState(gone, func(string, []byte) error { return nil }), context.Canceled)
	}},
	{"many at once", func(s *suite) {
		const writers, rounds = 40, 10
		s.must(errors.Join(together(writers, func(i int) error {
			for n := range rounds {
				mine := fmt.Sprintf("queue/%02d/%02d", i, n)
				set := map[string][]byte{mine: []byte(mine), fmt.Sprintf("queue/%02d/%02d", i, n-1): nil, "shared": []byte(mine)}
				if err := s.broker().SaveState(ctx, set); err != nil {
					return err
				}
			}
			return nil
		})...))
		keys := s.stateKeys()
		s.equal("how many keys", len(keys), writers+1)
		for i, key := range keys[:writers] {
			s.equal("key", key, fmt.Sprintf("queue/%02d/%02d", i, rounds-1))
		}
	}},
}

func (s *suite) broker() brokerState {
	s.Helper()
	b, ok := s.Store.(brokerState)
	if !ok {
		s.Fatalf("%T keeps no broker state", s.Store)
	}
	return b
}

// state saves and wants to find exactly want.
func (s *suite) state(set map[string][]byte, want map[string]string) {
	s.Helper()
	s.must(s.broker().SaveState(ctx, set))
	got := map[string]string{}
	s.must(s.broker().LoadState(ctx, func(key string, value []byte) error {
		got[key] = string(value)
		for i := range value {
			value[i] = 'x' // it is the caller's
		}
		return nil
	}))
	s.equal("state", got, want)
}

func (s *suite) stateKeys() (keys []string) {
	s.Helper()
	s.must(s.broker().LoadState(ctx, func(key string, _ []byte) error {
		keys = append(keys, key)
		return nil
	}))
	return keys
}
