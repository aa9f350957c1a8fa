package main

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/otad/otad/internal/mqtt/broker"
)

// brokerLimits reads NAME=VALUE settings.
func brokerLimits(settings []string) (broker.Limits, error) {
	var l broker.Limits
	all := l.Settings()
	for _, s := range settings {
		name, value, ok := strings.Cut(s, "=")
		i := slices.IndexFunc(all, func(known broker.Setting) bool { return known.Name == name })
		if !ok || i < 0 {
			return l, usageError{fmt.Errorf("--mqtt-limit %q: want NAME=VALUE with one of %s", s, strings.Join(names(all), ", "))}
		}
		if err := setLimit(all[i], value); err != nil {
			return l, usageError{fmt.Errorf("--mqtt-limit %s: %w", s, err)}
		}
	}
	return l, nil
}

func names(all []broker.Setting) []string {
	out := make([]string, 0, len(all))
	for _, s := range all {
		out = append(out, s.Name)
	}
	slices.Sort(out)
	return out
}

func setLimit(s broker.Setting, value string) error {
	if d, ok := s.Field.(*time.Duration); ok {
		v, err := time.ParseDuration(value)
		switch most := time.Duration(s.Most); {
		case err == nil && v > 0 && v <= most:
			*d = v
			return nil
		case most < math.MaxInt64:
			return fmt.Errorf("want a duration such as 60s, at most %s", most)
		}
		return fmt.Errorf("want a duration such as 60s")
	}
	v, err := strconv.ParseInt(value, 10, 64)
	if err != nil || v < 1 || v > s.Most {
		return fmt.Errorf("want a number from 1 to %d", s.Most)
	}
	switch f := s.Field.(type) {
	case *int:
		*f = int(v)
	case *uint16:
		*f = uint16(v)
	}
	return nil
}
