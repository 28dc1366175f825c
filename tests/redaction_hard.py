"""The hard half of the labelled set for redaction: lines with nothing personal in them that look as if."""

from __future__ import annotations

from collections import Counter

from operators.redact_rules import find
from tests.redaction_set import PERSONAL, labelled

HARD = labelled("""
Upgrade from version 1.2.3.4 to 1.2.3.5 first.
Chrome/119.0.0.0 Safari/537.36
pip install torch==2.1.0.1
openssl-3.0.11.1.tar.gz
FileVersion: 10.0.19041.1
see section 4.2.1.3 for details
4.1.2.3 Running the tests
firmware 2.14.3.7
v10.20.30.40 was tagged yesterday
assembly version 4.0.0.0
requires glibc >= 2.17.0.1
OID 1.3.6.1.4.1.311
driver 31.0.15.4601
the server listens on 127.0.0.1:8080
bind 0.0.0.0
mask 255.255.255.0
300.1.2.3 is no address
1.2.3.4.5.6
kernel 5.10.0.8-amd64
§ 12.3.4.5
Table 3.2.1.4
released 2023.10.4.1
libfoo.so.1.2.3.4
12:30:45
2023:11:04 12:30:45
std::vector<int>::iterator it
abc::def::ghi()
00:1a:2b:3c:4d:5e
00:1a:2b:ff:fe:3c:4d:5e
a::b
::1 is the loopback
ratio 16:9:4
dead::beef is a joke
proof: x :: y :: z
12:34:56:78:90:ab
docker run -p 3000:3000 -p 5432:5432
IPv6 uses :: for zeros
Order number 100-2345678-9012345
Order 2023-11-04-0001
Invoice INV-20231104-0042
Invoice no. 0412 345 678
order no. 415-555-0132
part number 303-555-0150
SKU 12345-67890-11
tracking 1Z999AA10123456784
tracking number 9400 1000 0000 0000 0000 00
order id 4000001234567890
ticket 4539578763621487 closed
serial 5500000000000005
4111 1111 1111 1112
1234 5678 9012 3456
9999999999999999
0000 0000 0000 0000
batch 6011000990139425
commit 3f786850e387550fdab836ed7e6dc881de23001b
sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
md5 d41d8cd98f00b204e9800998ecf8427e
index 83db48f..bf269f4 100644
8f14e45fceea167a5a36dedd4bea2543
crc 0x1EDC6F41 and 4294967295
550e8400-e29b-41d4-a716-446655440000
123e4567-e89b-12d3-a456-426614174000
00000000-0000-0000-0000-000000000000
urn:uuid:6ba7b810-9dad-11d1-80b4-00c04fd430c8
2023-11-04
04.11.2023 12:30
11/04/2023 12:30:45
20231104T123045Z
20231104123045
2023-11-04T12:30:45.123456+01:00
1699099200
1699099200000
1699099200000000
1699099200000000000
Mon, 04 Nov 2023 12:30:45 +0100
between 1999-2004 and 2010-2014
1914-1918, 1939-1945
UTC+05:30
from 08:00 to 17:30, 01.02.2023 to 05.06.2023
01-02-2023 03:04:05
Week 45, 2023-W45-6
ISBN 978-3-16-148410-0
ISBN-10: 0-306-40615-2
ISBN 0306406152
ISBN 978 0 306 40615 7
ISSN 2049-3630
doi:10.1000/182.2023.4567
arXiv:2301.12345v2
EAN 4006381333931
UPC 036000291452
US patent 10,123,456
PMID 12345678
48.8566, 2.3522
+48.856613, +2.352222
lat -33.868820 lon 151.209296
N 40° 26' 46" W 79° 58' 56"
52.5200° N, 13.4050° E
POINT(13.404954 52.520008)
EUR 1.234.567,89
$1,234,567.89
price 019.99
1 234 567 890 bytes
12,345,678 rows in 1.234567 s
total 4096 8192 16384
512 256 1024
64 128 256 512 1024 2048
3.141592653589793
6.02214076e23
-1.7976931348623157e+308
9223372036854775807
18446744073709551615
2147483647
0123456789
0x7fffffff
0b1010101010101010
0o1234567
#00ff00 #123456
10.5 x 20.25 x 30.125
types/node@18.11.9
npm install @babel/core@7.23.2
react@18.2.0
foo@1.2.3-beta.rc
logo@2x.png
icon@3x.webp
self.q@self.k.transpose(1, 2)
y = x@w.T
git@github.com:owner/repo.git
ssh://git@gitlab.example.com/owner/repo.git
@app.route("/users/<id>")
@dataclass
root@localhost
user@host
C@T
pkg:npm/%40angular/animation@12.3.1
https://medium.com/@someone/a-title-123456789
twitter: @jack
actions/checkout@v4
image: redis@sha256:7614ae9453d1d87e740a2056257a6de7135c84037c367e1fffa92ae922784631
jar@META-INF/x.class
gmail.com
at example dot com we say
127-34-56
12-34-5678
123-456-789
000-12-3456
666-12-3456
123-00-4567
123-45-0000
987-65-4320
1234-56-7890
123-45-67890
AB123456E
QQ 12 34 56 C
BG 12 34 56 A
12345678A
00000000-A
X1234567A
RSSMRA85T10A562X
ABCDEF12G34H567I
111.111.111-11
529.982.247-26
110105194912310021
756.9217.0769.86
131052-308U
85.07.30-033.29
2341 2341 2347
86 095 742 719 units
111222333
044051401359
DE00 3704 0044 0532 0130 00
GB29 NWBK 6016 1331 9268 18
DE89 is a prefix
XX12 3456 7890 1234 5678
AB12CD34EF56GH78IJ90KL12
FR14 chapter 20
licence key ABCDE-12345-FGHIJ-67890-KLMNO
02134-1234
ZIP 94103-1234
D-10115 Berlin
75008 Paris
SW1A 1AA
P.O. Box 1234567
room 0123, floor 4
lines 100-200, 300-400
pages 555-560
score 100-99-98
rev 1.2.3-456-gabc1234
phone model 5
we call 3 functions 1000000 times
call sub_401000
tel aviv 2023-11-04
fax machines sold: 1,234,567
mobile traffic grew 12.345678 percent
dial 9 for an outside line
port 51234 to 443
00 01 02 03 04 05 06 07
0000000 ffff 0001 0203 0405
01 02 03 04 05 06
0001-2345-6789
012-3456789-0123456
007 012 045 110
1-2-3-4-5-6-7-8-9
+1 and +2 votes
+12 -34 lines
++i; --j; x+=10
+++ b/file.c 2023-11-04 12:30:45
@@ -120,12 +120,15 @@
a[1:10:2] = b[0:20:4]
printf("%08d-%04d", 12345678, 9999)
x = 1e-10 + 2e+10
sum(1234567, 8901234, 5678901)
for i in range(1000000000):
chr1:155,204,239-155,214,653
NC_000001.11:g.155205043A>G
GSE12345 SRR1234567
CVE-2023-12345
RFC 2822, RFC 5322
RAL 9010, DIN 5008
IEEE 802.11
Boeing 747-400
A4 210 x 297
M12 x 1.75
450-550-650 nm
Python 3.11.6 (main, Oct  2 2023, 13:45:54) [Clang 15.0.0 (clang-1500.0.40.1)] on darwin
Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/118.0.5993.117
nginx/1.25.3.1 (Ubuntu)
mysql Ver 8.0.35.2 for Linux
RabbitMQ 3.12.8.0
Debian policy 4.6.2.0
ABI 12.4.1.0 required
the 1.0.0.0 release
Qt 6.5.3.0, ICU 73.2.0.1
Model: XPS-13-9310, S/N 5CD1234XYZ
Case 22-cv-01234-ABC
Docket No. 2023-0456-7890
Policy number 1234-5678-9012-3456
Account 000123456789
customer 98765432
passport photo 35x45
PO 4500012345
Batch 20240115-0003
GTIN 04012345678901
LOT 230415A
VIN 1HGCM82633A004352
NDC 0002-1433-80
CAS 7732-18-5
EC 200-578-6
HS code 8471.30.0100
ICD-10 E11.9, CPT 99213
zip 02134-1234 Boston
DOI 10.1145/3292500.3330701
https://example.com/2023/11/04/post-1234567890/
/var/log/app-2023-11-04.log.1
s3://bucket/2023/11/04/12/part-00000-1234.parquet
trace_id=4bf92f3577b34da6a3ce929d0e0e4736 span=00f067aa0ba902b7
id: 507f1f77bcf86cd799439011
ETag: "33a64df551425fcc55e4d42a148795d9f25f89d4"
nonce 00112233445566778899
seed 4012888888881882
phi=1.6180339887498948482
Population 1 411 778 724
1 000 000 000 000
0 1 1 2 3 5 8 13 21 34
10 20 30 40 50
2023-11-04,12.5,13.5,1020.25
0.123 0.456 0.789 0.012
12:30-14:45, 16:00-17:30
Nov 04 2023 12:30:45.678
19:22:01.123456 IP6
t=1699099200.123
RGB(255,255,255) rgba(12,34,56,0.78)
192x192, 512x512
GeForce RTX 4090 24 GB
MAC 3C-22-FB-12-34-56
aa:bb:cc:dd:ee:ff
BSSID de:ad:be:ef:00:01
use std::net::Ipv6Addr::new
Foo::Bar::baz(1)
let x: u8 = 0b1111_0000;
f(a, b)@g
user@ without domain
@media (min-width: 640px)
person@home
x@y.z
Vue@3.3.8
"pkg@npm:1.2.3"
a@b@c
def f(x): return x@x.mT
lodash@^4.17.21
logo@1.5x.jpg
temperature -40..+85
+5V, -12V, 230V
C# 12, F# 8
+100 points, +2500 XP
GPS +37.4219999,-122.0840575
matrix 3x3: 1 0 0 0 1 0 0 0 1
Q3 2023: 1.234.567 (2022: 1.123.456)
Kto-Nr. 1234567
HRB 123456 B
USt-IdNr. DE123456789
CHE-123.456.789
ABN 51 824 753 556
EIN 12-3456789
Steuernummer 21/815/08150
tel que 12 34 56
phone: n/a
mobile 4G LTE 2100 MHz
call 911
call stack depth 1048576
fax: -
""")
"""Versions, order numbers, hashes, dates, ISBNs, coordinates, prices, code …"""


def judged() -> tuple[Counter[str], Counter[str], Counter[str]]:
    """By kind, over the whole set: places found right to the character, places found, and places labelled."""
    right, found, placed = Counter[str](), Counter[str](), Counter[str]()
    for line in (*PERSONAL, *HARD):
        guessed = {(one.kind, one.start, one.end) for one in find(line.text)}
        found.update(kind for kind, _, _ in guessed)
        placed.update(kind for kind, _, _ in line.spans)
        right.update(kind for kind, _, _ in guessed & set(line.spans))
    return right, found, placed
