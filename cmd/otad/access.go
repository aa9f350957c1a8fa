package main

import (
	"time"

	"github.com/spf13/pflag"

	"github.com/otad/otad/internal/mqtt"
)

// loginTimeout bounds what the store and the queue of passwords may take of a
// connection's time.
const loginTimeout = 5 * time.Second

func topicFlags(f *pflag.FlagSet) {
	f.StringSlice("topic-publish", nil, "free-form `topics` that a device may publish to, with one level {device}, such as 'sensors/{device}/#'")
	f.StringSlice("topic-subscribe", nil, "free-form `topics` that a device may subscribe to, such as 'sensors/{device}/command'")
}

// templates reads the two settings together; a fault of theirs is one of the
// command line.
func (c config) templates() (*mqtt.Templates, error) {
	t, err := mqtt.ParseTemplates(c.TopicPublish, c.TopicSubscribe)
	if err != nil {
		return nil, usageError{err}
	}
	return t, nil
}
