package mqtt

import (
	"strings"

	"github.com/otad/otad/pkg/ota"
)

// MaxTopicLevels is how many levels a device's topic or filter has at most.
const MaxTopicLevels = 8

// ownTree is the first level of the topics that the server shares with its own
// agents, ota/{device}/.
const ownTree = "ota"

// DeviceAccess is the Access of a device: everything below $aws/things/{id}/ and
// ota/{id}/, compared byte by byte, and its part of the templates. An id that no
// device may have gets nothing, and nil templates are none.
func DeviceAccess(deviceID string, t *Templates) Access {
	if t == nil {
		t = new(Templates)
	}
	if ota.ValidateDeviceID(deviceID) != nil {
		return noAccess{}
	}
	return deviceAccess{id: deviceID, templates: t}
}

type deviceAccess struct {
	id        string
	templates *Templates
}

// MayPublish implements Access.
func (a deviceAccess) MayPublish(topic string) bool {
	return !strings.ContainsAny(topic, "+#") && a.may(a.templates.publish, topic)
}

// MaySubscribe implements Access.
func (a deviceAccess) MaySubscribe(filter string) bool { return a.may(a.templates.subscribe, filter) }

// MayReceive implements Access. It says again what MaySubscribe said of the
// filter, so that a mistake in one of the two discloses nothing.
func (a deviceAccess) MayReceive(topic string) bool { return a.may(a.templates.subscribe, topic) }

func (a deviceAccess) may(templates []template, topic string) bool {
	if strings.Count(topic, "/") >= MaxTopicLevels {
		return false
	}
	if reserved(topic) {
		return owns(a.id, topic)
	}
	for _, t := range templates {
		if t.covers(a.id, topic) {
			return true
		}
	}
	return false
}

// reserved reports a topic or filter in the trees that no template reaches.
func reserved(topic string) bool {
	first, _, _ := strings.Cut(topic, "/")
	return strings.HasPrefix(first, "$") || first == ownTree
}

// owns reports whether topic, a topic name or a filter, lies under the device's
// own prefixes. It compares bytes: a wildcard or $share in the leading levels is
// simply not the prefix.
func owns(deviceID, topic string) bool {
	rest, ok := strings.CutPrefix(topic, thingsPrefix)
	if !ok {
		rest, ok = strings.CutPrefix(topic, ownTree+"/")
	}
	if !ok {
		return false
	}
	if rest, ok = strings.CutPrefix(rest, deviceID); !ok {
		return false
	}
	return len(rest) > 1 && rest[0] == '/'
}

// noAccess denies everything.
type noAccess struct{}

func (noAccess) MayPublish(string) bool   { return false }
func (noAccess) MaySubscribe(string) bool { return false }
func (noAccess) MayReceive(string) bool   { return false }

// ProvisioningAccess is the Access of a connection that came with claim
// credentials: the calls of fleet provisioning (AWS IoT, "Device provisioning
// MQTT API") and their answers, named exactly as the device SDKs name them.
// Nothing else is open, and no wildcard: what is answered here are certificates.
func ProvisioningAccess() Access { return provisioningAccess{} }

type provisioningAccess struct{}

// MayPublish implements Access.
func (provisioningAccess) MayPublish(topic string) bool { return provisioningCall(topic) }

// MaySubscribe implements Access.
func (provisioningAccess) MaySubscribe(filter string) bool {
	call, answer := filter, false
	for _, suffix := range []string{"/accepted", "/rejected"} {
		if c, ok := strings.CutSuffix(filter, suffix); ok {
			call, answer = c, true
		}
	}
	return answer && provisioningCall(call)
}

// MayReceive implements Access.
func (a provisioningAccess) MayReceive(topic string) bool { return a.MaySubscribe(topic) }

// maxTemplateNameBytes is AWS's limit for a provisioning template's name.
const maxTemplateNameBytes = 36

// provisioningCall reports whether topic is one of the calls.
func provisioningCall(topic string) bool {
	switch topic {
	case "$aws/certificates/create/json", "$aws/certificates/create/cbor",
		"$aws/certificates/create-from-csr/json", "$aws/certificates/create-from-csr/cbor":
		return true
	}
	rest, ok := strings.CutPrefix(topic, "$aws/provisioning-templates/")
	name, call, _ := strings.Cut(rest, "/")
	return ok && (call == "provision/json" || call == "provision/cbor") && templateName(name)
}

// templateName reports a name that matches AWS's ^[0-9A-Za-z_-]{1,36}$.
func templateName(s string) bool {
	return s != "" && len(s) <= maxTemplateNameBytes && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-'
	})
}

// OpenAccess is the Access of a listener without credentials, for tools and test
// suites: every topic but those of the trees $aws, $SYS and ota, and $share. A
// filter whose wildcards reach into the tree ota, such as #, is accepted, as
// such suites use it; MayReceive keeps those messages back.
func OpenAccess() Access { return openAccess{} }

type openAccess struct{}

// MayPublish implements Access.
func (openAccess) MayPublish(topic string) bool { return open(topic) }

// MaySubscribe implements Access.
func (openAccess) MaySubscribe(filter string) bool { return open(filter) }

// MayReceive implements Access.
func (openAccess) MayReceive(topic string) bool { return open(topic) }

func open(topic string) bool {
	first, _, _ := strings.Cut(topic, "/")
	switch first {
	case "$aws", "$SYS", "$share", ownTree:
		return false
	}
	return true
}
