package wire

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const magic = 0x31545357 // "WST1"

var errTest = errors.New("not of the test")

func written() []byte {
	buf := AppendUint32(nil, magic)
	buf = AppendInts(buf, 1, -1, math.MinInt64)
	buf = AppendInt(buf, int64(math.Float64bits(2.5)))
	buf = AppendShort(buf, 127)
	buf = AppendShort(buf, math.MaxUint64)
	buf = AppendText(buf, "")
	buf = AppendText(buf, "text")
	buf = AppendText(buf, "longer text")
	return append(buf, 7)
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	r := Read(written(), magic)
	require.Equal(t, []int64{1, -1, math.MinInt64}, []int64{r.Int(), r.Int(), r.Int()})
	require.InDelta(t, 2.5, r.Float(), 0)
	require.Equal(t, []uint64{127, math.MaxUint64}, []uint64{r.Short(), r.Short()})
	require.Equal(t, []string{"", "text", "long"}, []string{r.Text(9), r.Text(4), r.Text(4)}, "and of a longer one the beginning")
	require.Equal(t, 1, r.Left())
	require.Equal(t, byte(7), r.Byte())
	require.NoError(t, r.End(errTest))
}

// The bytes stay what they are: workers of two versions of the plugin share one storage.
func TestTheBytes(t *testing.T) {
	buf := AppendUint32(nil, 0x04030201)
	buf = AppendInts(buf, 0x0c0b0a0908070605, -2)
	buf = AppendText(AppendShort(buf, 300), "ab")
	require.Equal(t, []byte("\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\xfe\xff\xff\xff\xff\xff\xff\xff\xac\x02\x02ab"), buf)
}

func TestTheFirstThatWasNotThereIsTheError(t *testing.T) {
	r := Read(AppendUint32(nil, magic+1), magic)
	r.Expect(false, "anything")
	require.Zero(t, r.Int())
	require.ErrorIs(t, r.End(errTest), errTest)
	require.EqualError(t, r.End(errTest), "not of the test: expected another beginning")

	r = Read(append(written(), 0), magic)
	require.EqualError(t, r.End(errTest), "not of the test: expected the end")

	r = Read(written()[:6], magic)
	require.Zero(t, r.Int())
	require.EqualError(t, r.End(errTest), "not of the test: expected more bytes")
}

// read reads as written writes, whatever it gets.
func read(value []byte) error {
	r := Read(value, magic)
	r.Int()
	r.Int()
	r.Int()
	r.Float()
	r.Short()
	r.Short()
	for range 3 {
		if len(r.Text(4)) > 4 {
			panic("longer than asked for")
		}
	}
	r.Byte()
	return r.End(errTest)
}

func TestNothingIsReadBeyondTheEnd(t *testing.T) {
	value := written()
	require.NoError(t, read(value))
	for n := range value {
		require.ErrorIs(t, read(value[:n:n]), errTest)
	}
	require.ErrorIs(t, read([]byte(strings.Repeat("\xff", 100))), errTest)
}

func FuzzRead(f *testing.F) {
	f.Add(written())
	f.Fuzz(func(t *testing.T, value []byte) {
		if err := read(value); err != nil {
			require.ErrorIs(t, err, errTest)
		}
	})
}
