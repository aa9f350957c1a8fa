package mqtt_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/pkg/shadow"
)

// away is a broker without a connection, which is waited for as long as one likes.
type away struct{ mqtt.Broker }

func (away) Listening(string) bool { return true }

func (away) Publish(ctx context.Context, _ mqtt.Message) error {
	<-ctx.Done()
	return ctx.Err()
}

// TestABrokerThatIsAwayKeepsNobodyWaiting: the update is stored, whoever made it
// hears so before giving up.
func TestABrokerThatIsAwayKeepsNobodyWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &mqtt.Publisher{Broker: away{}, Now: time.Now}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		err := p.ShadowUpdated(ctx, "gw-1", "", shadow.Result{})
		if waited := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || waited > 10*time.Second {
			t.Errorf("after %s: %v", waited, err)
		}
	})
}
