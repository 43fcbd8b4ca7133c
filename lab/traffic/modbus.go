package traffic

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Modbus/TCP ("MODBUS Messaging on TCP/IP Implementation Guide V1.0b"): a header of transaction, protocol 0, length
// and unit; then a function code and its data. The lab's PLCs answer function 3. Like most of their kind they ask
// nobody who he is: function 100, of the range for users, is their way in.
const (
	modbusHeader       = 7
	modbusLimit        = 254 // of function code and data, by the specification 253; replies of takeover fit
	modbusReadHolding  = 3
	modbusTakeover     = 100
	modbusException    = 0x80
	modbusBadFunction  = 1
	modbusBadAddress   = 2
	modbusMaxRegisters = 125
)

var errModbus = errors.New("not Modbus/TCP")

type modbusPDU struct {
	transaction uint16
	unit        byte
	function    byte
	data        []byte
}

func writeModbus(w io.Writer, p *modbusPDU) (int, error) {
	if len(p.data)+1 > modbusLimit {
		return 0, fmt.Errorf("%w: %d bytes are too many", errModbus, len(p.data))
	}
	b := make([]byte, 0, modbusHeader+1+len(p.data))
	b = binary.BigEndian.AppendUint16(b, p.transaction)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(2+len(p.data)))
	b = append(b, p.unit, p.function)
	return w.Write(append(b, p.data...))
}

func readModbus(r io.Reader) (*modbusPDU, error) {
	var head [modbusHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	length := int(binary.BigEndian.Uint16(head[4:]))
	if binary.BigEndian.Uint16(head[2:]) != 0 || length < 2 || length > modbusLimit+1 {
		return nil, errModbus
	}
	pdu := make([]byte, length-1)
	if _, err := io.ReadFull(r, pdu); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return &modbusPDU{transaction: binary.BigEndian.Uint16(head[:]), unit: head[6], function: pdu[0], data: pdu[1:]}, nil
}

// modbusRoundTrip reads registers holding registers from address 0 on.
func modbusRoundTrip(rw io.ReadWriter, transaction uint16, registers int) (sent, rcvd int, err error) {
	registers = min(max(registers, 1), modbusMaxRegisters)
	sent, err = writeModbus(rw, &modbusPDU{transaction: transaction, unit: 1, function: modbusReadHolding,
		data: []byte{0, 0, 0, byte(registers)}})
	if err != nil {
		return sent, 0, err
	}
	reply, err := readModbus(rw)
	switch {
	case err != nil:
		return sent, 0, err
	case reply.transaction != transaction:
		return sent, 0, fmt.Errorf("%w: asked %d and got the reply to %d", errModbus, transaction, reply.transaction)
	case reply.function == modbusReadHolding|modbusException:
		return sent, 0, fmt.Errorf("%w: exception %v", errModbus, reply.data)
	case reply.function != modbusReadHolding || len(reply.data) != 1+2*registers || int(reply.data[0]) != 2*registers:
		return sent, 0, fmt.Errorf("%w: a reply of another shape", errModbus)
	}
	return sent, modbusHeader + 1 + len(reply.data), nil
}

// answerModbus replies to one request that is not a takeover.
func answerModbus(w io.Writer, p *modbusPDU) error {
	reply := modbusPDU{transaction: p.transaction, unit: p.unit, function: p.function | modbusException}
	switch {
	case p.function != modbusReadHolding:
		reply.data = []byte{modbusBadFunction}
	case len(p.data) != 4:
		reply.data = []byte{modbusBadAddress}
	default:
		first, count := binary.BigEndian.Uint16(p.data), int(binary.BigEndian.Uint16(p.data[2:]))
		if count < 1 || count > modbusMaxRegisters {
			reply.data = []byte{modbusBadAddress}
			break
		}
		reply.function = p.function
		reply.data = append(reply.data, byte(2*count))
		for i := range count {
			reply.data = binary.BigEndian.AppendUint16(reply.data, register(first+uint16(i)))
		}
	}
	_, err := writeModbus(w, &reply)
	return err
}

// register is what a sensor shows: it moves with time.
func register(n uint16) uint16 {
	return 2000 + n*10 + uint16(time.Now().Unix()%60)
}

func modbusTakeOver(rw io.ReadWriter, m *Takeover) (*TakeoverReply, error) {
	body, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	if _, err := writeModbus(rw, &modbusPDU{transaction: 1, unit: 1, function: modbusTakeover, data: body}); err != nil {
		return nil, err
	}
	p, err := readModbus(rw)
	if err != nil {
		return nil, err
	}
	if p.function != modbusTakeover {
		return &TakeoverReply{Why: "the device does not know the function"}, nil
	}
	var reply TakeoverReply
	return &reply, json.Unmarshal(p.data, &reply)
}
