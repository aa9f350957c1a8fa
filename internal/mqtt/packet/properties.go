package packet

import "fmt"

// Property identifiers (2.2.2.2).
const (
	propPayloadFormat   = 0x01
	propMessageExpiry   = 0x02
	propContentType     = 0x03
	propResponseTopic   = 0x08
	propCorrelation     = 0x09
	propSubscriptionID  = 0x0B
	propSessionExpiry   = 0x11
	propAssignedID      = 0x12
	propServerKeepAlive = 0x13
	propAuthMethod      = 0x15
	propAuthData        = 0x16
	propRequestProblem  = 0x17
	propWillDelay       = 0x18
	propRequestResponse = 0x19
	propReasonString    = 0x1F
	propReceiveMaximum  = 0x21
	propAliasMaximum    = 0x22
	propTopicAlias      = 0x23
	propMaximumQoS      = 0x24
	propRetainAvailable = 0x25
	propUser            = 0x26
	propMaximumPacket   = 0x27
	propWildcards       = 0x28
	propSubIDs          = 0x29
	propShared          = 0x2A
)

// form is how a property's value is written.
type form byte

const (
	formNone form = iota
	formByte
	formUint16
	formUint32
	formVarint
	formText
	formBinary
	formPair
)

var forms = [...]form{
	propPayloadFormat: formByte, propMessageExpiry: formUint32, propContentType: formText, propResponseTopic: formText,
	propCorrelation: formBinary, propSubscriptionID: formVarint, propSessionExpiry: formUint32, propAuthMethod: formText,
	propAuthData: formBinary, propRequestProblem: formByte, propWillDelay: formUint32, propRequestResponse: formByte,
	propReasonString: formText, propReceiveMaximum: formUint16, propAliasMaximum: formUint16, propTopicAlias: formUint16,
	propUser: formPair, propMaximumPacket: formUint32,
}

// set is a set of property identifiers.
type set uint64

func setOf(ids ...byte) set {
	var s set
	for _, id := range ids {
		s |= 1 << id
	}
	return s
}

func (s set) has(id byte) bool { return id < 64 && s&(1<<id) != 0 }

// What a client may send in which packet (2.2.2.2, table 2-4).
var (
	connectProps = setOf(propSessionExpiry, propReceiveMaximum, propMaximumPacket, propAliasMaximum, propRequestResponse,
		propRequestProblem, propUser, propAuthMethod, propAuthData)
	willProps       = setOf(propWillDelay, propPayloadFormat, propMessageExpiry, propContentType, propResponseTopic, propCorrelation, propUser)
	publishProps    = setOf(propPayloadFormat, propMessageExpiry, propTopicAlias, propResponseTopic, propCorrelation, propUser, propContentType)
	forwarded       = setOf(propPayloadFormat, propResponseTopic, propCorrelation, propUser, propContentType)
	ackProps        = setOf(propReasonString, propUser)
	subscribeProps  = setOf(propSubscriptionID, propUser)
	unsubProps      = setOf(propUser)
	disconnectProps = setOf(propSessionExpiry, propReasonString, propUser)
)

// property is one property as read. Of the values only that of its form is set.
type property struct {
	id    byte
	num   uint32
	value []byte
	key   []byte // of a user property
	raw   []byte // all of it, identifier included
}

// properties reads a property list and calls f for each. One that is unknown, not
// allowed or there twice is an error (2.2.2.2).
func (r *reader) properties(allowed set, f func(property)) {
	list := reader{b: r.take(r.varint("the property length"), "the properties")}
	if r.err != nil {
		return
	}
	var seen set
	for len(list.b) > 0 {
		start := list.b
		p := list.property()
		if list.err != nil {
			break
		}
		if !allowed.has(p.id) {
			list.fail(violation("property %#x has no place here", p.id))
			break
		}
		if seen.has(p.id) && p.id != propUser {
			list.fail(violation("property %#x twice", p.id))
			break
		}
		seen |= 1 << p.id
		p.raw = start[:len(start)-len(list.b)]
		f(p)
	}
	if list.err != nil {
		r.fail(list.err)
	}
}

func (r *reader) property() property {
	p := property{id: r.byte("a property")}
	if int(p.id) >= len(forms) || forms[p.id] == formNone {
		r.fail(malformed("unknown property %#x", p.id))
		return p
	}
	const what = "a property's value"
	switch forms[p.id] {
	case formByte:
		p.num = uint32(r.byte(what))
	case formUint16:
		p.num = uint32(r.uint16(what))
	case formUint32:
		p.num = r.uint32(what)
	case formVarint:
		p.num = uint32(r.varint(what))
	case formText:
		p.value = r.text(what)
	case formBinary:
		p.value = r.binary(what)
	case formPair:
		p.key, p.value = r.text(what), r.text(what)
	}
	if r.err == nil {
		if text := p.fault(); text != "" {
			r.fail(violation("%s", text))
		}
	}
	return p
}

// fault says what is wrong with a value that its form allows.
func (p property) fault() string {
	switch p.id {
	case propPayloadFormat, propRequestProblem, propRequestResponse:
		if p.num > 1 {
			return fmt.Sprintf("property %#x has the value %d; only 0 and 1 mean something", p.id, p.num)
		}
	case propReceiveMaximum, propMaximumPacket, propSubscriptionID:
		if p.num == 0 {
			return fmt.Sprintf("property %#x is 0", p.id)
		}
	case propResponseTopic:
		if !ValidTopicName(string(p.value)) {
			return "the response topic is no topic name" // 3.3.2-14
		}
	}
	return ""
}

// UserProperty is a name and its value (2.2.2.2).
type UserProperty struct{ Key, Value string }

// Attributes are the properties of a message that an application looks at.
type Attributes struct {
	ResponseTopic   string
	CorrelationData []byte
	User            []UserProperty
}

// ParseAttributes reads the forwarded properties of a Publish.
func ParseAttributes(props []byte) Attributes {
	var a Attributes
	r := reader{b: props}
	for len(r.b) > 0 {
		switch p := r.property(); p.id {
		case propResponseTopic:
			a.ResponseTopic = string(p.value)
		case propCorrelation:
			a.CorrelationData = p.value
		case propUser:
			a.User = append(a.User, UserProperty{string(p.key), string(p.value)})
		}
	}
	return a
}

// AppendAttributes writes them as forwarded properties.
func AppendAttributes(dst []byte, a Attributes) []byte {
	if a.ResponseTopic != "" {
		dst = appendText(append(dst, propResponseTopic), a.ResponseTopic)
	}
	if a.CorrelationData != nil {
		dst = appendText(append(dst, propCorrelation), string(a.CorrelationData))
	}
	for _, u := range a.User {
		dst = appendText(appendText(append(dst, propUser), u.Key), u.Value)
	}
	return dst
}
