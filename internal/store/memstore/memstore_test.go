package memstore_test

import (
	"testing"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/store/memstore"
	"github.com/otad/otad/internal/store/storetest"
)

func TestStore(t *testing.T) {
	storetest.Run(t, func(testing.TB) fleet.Store { return memstore.New() })
}
