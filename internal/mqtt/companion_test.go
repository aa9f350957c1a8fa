package mqtt_test

import (
	"testing"

	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/pkg/ota"
)

func TestCompanionsAreNoDevices(t *testing.T) {
	ids := mqtt.CompanionIDs("gw-1")
	if len(ids) != mqtt.MaxCompanions || ids[0] != "gw-1/1" || ids[len(ids)-1] != "gw-1/4" {
		t.Errorf("%q", ids)
	}
	for _, id := range ids {
		if ota.ValidateDeviceID(id) == nil {
			t.Errorf("%s could be a device", id)
		}
	}
}
