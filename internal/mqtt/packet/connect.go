package packet

// Connect is a CONNECT (3.1).
type Connect struct {
	Version    byte // V31, V311 or V5
	CleanStart bool
	KeepAlive  uint16 // seconds, 0: none
	ClientID   string
	Username   string
	Password   []byte
	HasUser    bool
	HasPass    bool
	Will       *Will

	// Of MQTT 5; for older clients what means the same.
	SessionExpiry  uint32 // seconds; NeverExpires: no end
	ReceiveMaximum uint16 // 65535 when not said
	MaximumPacket  uint32 // bytes, 0: no limit
	AliasMaximum   uint16
	NoProblemInfo  bool // reason strings at most in CONNACK and DISCONNECT (3.1.2.11.7)
	AuthMethod     string
	HasAuthData    bool
}

// NeverExpires is the session expiry that stands for no end (3.1.2.11.2).
const NeverExpires = 0xFFFFFFFF

// Will is what is published when the client is lost (3.1.2.5).
type Will struct {
	Topic     string
	Payload   []byte
	QoS       byte
	Retain    bool
	Delay     uint32 // seconds
	Expiry    uint32 // seconds
	HasExpiry bool
	Props     []byte // forwarded properties
}

const (
	flagReserved = 1 << iota
	flagClean
	flagWill
	_
	_
	flagWillRetain
	flagPassword
	flagUser
)

// DecodeConnect reads the body of a CONNECT. Its strings are copies. A version
// that this server does not speak is an error with UnsupportedVersion.
func DecodeConnect(body []byte) (Connect, error) {
	r := reader{b: body}
	c := Connect{ReceiveMaximum: 65535}
	name := string(r.binary("the protocol name"))
	c.Version = r.byte("the protocol version")
	if r.err != nil {
		return c, r.err
	}
	if name != "MQTT" && name != "MQIsdp" {
		return c, &Error{UnsupportedVersion, "protocol name is not MQTT"} // 3.1.2-1
	}
	if name == "MQIsdp" && c.Version != V31 || name == "MQTT" && c.Version != V311 && c.Version != V5 {
		return c, &Error{UnsupportedVersion, "protocol version is none of 3.1, 3.1.1 and 5"} // 3.1.2-2
	}
	flags := r.byte("the connect flags")
	c.CleanStart, c.HasUser, c.HasPass = flags&flagClean != 0, flags&flagUser != 0, flags&flagPassword != 0
	c.KeepAlive = r.uint16("the keep alive")
	if r.err == nil {
		r.failIf(c.checkFlags(flags))
	}
	if c.Version == V5 {
		r.properties(connectProps, c.property)
		if c.HasAuthData && c.AuthMethod == "" {
			r.failIf(&Error{ProtocolError, "authentication data without a method"}) // 3.1.2.11.10
		}
	} else if !c.CleanStart {
		c.SessionExpiry = NeverExpires
	}
	c.ClientID = string(r.text("the client identifier"))
	if flags&flagWill != 0 {
		c.Will = r.will(c.Version, flags)
	}
	if c.HasUser {
		c.Username = string(r.text("the user name"))
	}
	if c.HasPass {
		c.Password = append([]byte{}, r.binary("the password")...)
	}
	return c, r.end()
}

func (r *reader) failIf(err error) {
	if err != nil {
		r.fail(err)
	}
}

func (c *Connect) checkFlags(flags byte) error {
	willQoS := flags >> 3 & 3
	switch {
	case flags&flagReserved != 0:
		return malformed("the reserved connect flag is set") // 3.1.2-3
	case flags&flagWill == 0 && (willQoS != 0 || flags&flagWillRetain != 0):
		return malformed("will flags without a will") // 3.1.2-11, 3.1.2-13
	case willQoS == 3:
		return malformed("will QoS 3") // 3.1.2-12
	case c.Version != V5 && c.HasPass && !c.HasUser:
		return malformed("a password without a user name") // MQTT 3.1.1, 3.1.2-22
	}
	return nil
}

func (c *Connect) property(p property) {
	switch p.id {
	case propSessionExpiry:
		c.SessionExpiry = p.num
	case propReceiveMaximum:
		c.ReceiveMaximum = uint16(p.num)
	case propMaximumPacket:
		c.MaximumPacket = p.num
	case propAliasMaximum:
		c.AliasMaximum = uint16(p.num)
	case propRequestProblem:
		c.NoProblemInfo = p.num == 0
	case propAuthMethod:
		c.AuthMethod = string(p.value)
	case propAuthData:
		c.HasAuthData = true
	}
}

func (r *reader) will(version, flags byte) *Will {
	w := &Will{QoS: flags >> 3 & 3, Retain: flags&flagWillRetain != 0}
	if version == V5 {
		r.properties(willProps, func(p property) {
			switch {
			case p.id == propWillDelay:
				w.Delay = p.num
			case p.id == propMessageExpiry:
				w.Expiry, w.HasExpiry = p.num, true
			case forwarded.has(p.id):
				w.Props = append(w.Props, p.raw...)
			}
		})
	}
	w.Topic = string(r.text("the will topic"))
	w.Payload = append([]byte{}, r.binary("the will payload")...)
	if r.err == nil && !ValidTopicName(w.Topic) {
		r.fail(&Error{TopicNameInvalid, "the will topic is no topic name"})
	}
	return w
}

// Connack is the answer to CONNECT (3.2). All but the first two fields are of
// MQTT 5 and left out for older clients; zero values are left out too.
type Connack struct {
	SessionPresent bool
	Code           Code
	Reason         string

	AssignedID      string
	ServerKeepAlive *uint16
	SessionExpiry   *uint32
	ReceiveMaximum  uint16
	MaximumPacket   uint32
	AliasMaximum    uint16
}

// AppendConnack writes a CONNACK.
func AppendConnack(dst []byte, version byte, c Connack) []byte {
	var present byte
	if c.SessionPresent {
		present = 1
	}
	if version != V5 {
		return append(dst, byte(CONNACK)<<4, 2, present, c.Code.v3())
	}
	var props []byte
	if c.SessionExpiry != nil {
		props = appendUint32(append(props, propSessionExpiry), *c.SessionExpiry)
	}
	if c.ReceiveMaximum != 0 {
		props = appendUint16(append(props, propReceiveMaximum), c.ReceiveMaximum)
	}
	if c.MaximumPacket != 0 {
		props = appendUint32(append(props, propMaximumPacket), c.MaximumPacket)
	}
	if c.AssignedID != "" {
		props = appendText(append(props, propAssignedID), c.AssignedID)
	}
	if c.AliasMaximum != 0 {
		props = appendUint16(append(props, propAliasMaximum), c.AliasMaximum)
	}
	if c.Reason != "" {
		props = appendText(append(props, propReasonString), c.Reason)
	}
	if c.ServerKeepAlive != nil {
		props = appendUint16(append(props, propServerKeepAlive), *c.ServerKeepAlive)
	}
	dst = append(dst, byte(CONNACK)<<4)
	dst = appendVarint(dst, 2+varintSize(len(props))+len(props))
	dst = append(dst, present, byte(c.Code))
	dst = appendVarint(dst, len(props))
	return append(dst, props...)
}

// v3 is the CONNACK return code of MQTT 3.1.1 (its 3.2.2.3) that comes closest.
func (c Code) v3() byte {
	switch c {
	case Success:
		return 0
	case UnsupportedVersion:
		return 1
	case ClientIDNotValid:
		return 2
	case BadUserNameOrPassword:
		return 4
	case NotAuthorized, TopicNameInvalid:
		return 5
	}
	return 3
}
