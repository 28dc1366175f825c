"""A labelled set for redaction: lines of the kinds that documents have, with what is personal between ⟦KIND …⟧.

Made by hand for this project; persons, numbers and addresses are invented, reserved for documentation, or published as
test numbers. Its counterpart, `tests/redaction_hard.py`, looks personal and is not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_MARK = re.compile(r"⟦(\w+) ([^⟧]+)⟧")


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text and its personal places: (kind, start, end), in order."""

    text: str
    spans: tuple[tuple[str, int, int], ...]


def parse(marked: str) -> Labelled:
    """The text without the marks, and where they were."""
    pieces: list[str] = []
    spans: list[tuple[str, int, int]] = []
    done = length = 0
    for mark in _MARK.finditer(marked):
        before = marked[done : mark.start()]
        start = length + len(before)
        length = start + len(mark[2])
        pieces += [before, mark[2]]
        spans.append((mark[1], start, length))
        done = mark.end()
    return Labelled("".join([*pieces, marked[done:]]), tuple(spans))


def labelled(lines: str) -> tuple[Labelled, ...]:
    """A labelled text a line; `⏎` stands for a line feed within one."""
    return tuple(parse(line.replace("⏎", "\n")) for line in lines.splitlines() if line.strip())


PERSONAL = labelled("""
Please write to ⟦EMAIL jane.doe@example.com⟧ before Friday.
Contact: ⟦EMAIL j.o'neill@example.ie⟧.
Maintainer: Ana Souza <⟦EMAIL ana.souza@correio.example.br⟧>
[mail us](mailto:⟦EMAIL support@example.org⟧?subject=Help)
From: ⟦EMAIL root@mail.example.net⟧ (Cron Daemon)
reply to ⟦EMAIL a@b.co⟧, ⟦EMAIL first.last+tag@sub.domain.example.co.uk⟧ or ⟦EMAIL x_y-z@example.io⟧;
author = "⟦EMAIL dev@company.dev⟧"
E-Mail: ⟦EMAIL jürgen.müller@beispiel.de⟧
Die Adresse lautet ⟦EMAIL info@müller-söhne.de⟧.
"⟦EMAIL USER.NAME@EXAMPLE.COM⟧" signed in at 10:45
user=⟦EMAIL bob@example.com⟧ action=login status=ok
⟦EMAIL sales@example.museum⟧ | ⟦EMAIL press@example.photography⟧ | ⟦EMAIL it@example.travel⟧
name,mail⏎Li Wei,⟦EMAIL li.wei@163.com⟧⏎Kim,⟦EMAIL kim99@naver.com⟧
Reported-by: T. <⟦EMAIL t@xn--bcher-kva.example⟧>
git config user.email ⟦EMAIL me@personal.email⟧
Signed-off-by: Sam <⟦EMAIL sam@kernel.example⟧>
{"to": ["⟦EMAIL one@example.com⟧", "⟦EMAIL two@example.com⟧"]}
write me at ⟦EMAIL jane [at] example [dot] org⟧ please
spam-safe: ⟦EMAIL joe(at)example(dot)com⟧
alias ⟦EMAIL 12345@example.edu⟧ forwards to the list
@Override // ask ⟦EMAIL owner@example.com⟧
Was ist mit ⟦EMAIL büro@beispiel.at⟧? Keine Antwort.
(⟦EMAIL kontakt@beispiel.ch⟧)
see ⟦EMAIL ops@cluster.internal⟧ or ⟦EMAIL admin@printer.local⟧
/home/⟦EMAIL alice@corp.example⟧/inbox
Call me at ⟦PHONE (415) 555-0132⟧ after six.
Phone: ⟦PHONE 415-555-0133⟧
Tel. ⟦PHONE +1 415 555 0134⟧ / Fax ⟦PHONE +1 415 555 0135⟧
Our number is ⟦PHONE 1-800-555-0199⟧.
⟦PHONE 212.555.0187⟧ is the New York office
office ⟦PHONE +1 (212) 555-0188 ext. 45⟧
⟦PHONE (212)555-0189⟧
mobile: ⟦PHONE 2125550190⟧
cell ⟦PHONE 212 555 0191⟧
Ring Anna on ⟦PHONE +44 20 7946 0958⟧
London: ⟦PHONE 020 7946 0959⟧
UK mobile ⟦PHONE 07700 900123⟧
⟦PHONE +44 (0)20 7946 0960⟧
⟦PHONE (020) 7946 0961⟧
Sheffield, ⟦PHONE 0114 496 0999⟧
⟦PHONE +44 7700 900 456⟧
Telefon: ⟦PHONE 030 1234567⟧
Zentrale ⟦PHONE 030/1234567-89⟧
⟦PHONE +49 30 901820⟧
Handy ⟦PHONE 0171 2345678⟧
⟦PHONE +49 (0) 171 2345678⟧
⟦PHONE 089 / 12 34 56 78⟧
⟦PHONE 0049 30 1234567⟧
⟦PHONE +49-171-2345678⟧
Tél. : ⟦PHONE 01 23 45 67 89⟧
⟦PHONE 06.12.34.56.78⟧ (portable)
⟦PHONE +33 1 23 45 67 89⟧
⟦PHONE +33 (0)6 12 34 56 78⟧
⟦PHONE +33612345678⟧
Wien ⟦PHONE +43 1 5860301⟧
Zürich ⟦PHONE 044 668 18 00⟧, Bern ⟦PHONE +41 31 322 21 11⟧
Amsterdam ⟦PHONE 020-5551234⟧
mobiel ⟦PHONE 06-12345678⟧
⟦PHONE +31 20 555 1234⟧
Teléfono: ⟦PHONE 912 345 678⟧
móvil ⟦PHONE 612345678⟧
⟦PHONE +34 612 34 56 78⟧
⟦PHONE +39 06 6982 1234⟧ is the switchboard
cellulare: ⟦PHONE +39 347 123 4567⟧
⟦PHONE +351 21 123 4567⟧
Stockholm ⟦PHONE 08-123 456 78⟧
⟦PHONE +46 70 123 45 67⟧
⟦PHONE +45 32 12 34 56⟧
⟦PHONE +47 22 12 34 56⟧
⟦PHONE +358 9 1234567⟧
Tokyo ⟦PHONE 03-1234-5678⟧, ⟦PHONE 090-1234-5678⟧
⟦PHONE +81 3-1234-5678⟧
⟦PHONE +86 138 0013 8000⟧
⟦PHONE +91 98765 43210⟧
⟦PHONE +61 2 9876 5432⟧
⟦PHONE 0412 345 678⟧ (Sydney)
⟦PHONE +55 11 91234-5678⟧
⟦PHONE +52 55 1234 5678⟧
⟦PHONE +7 495 123-45-67⟧
Тел.: ⟦PHONE +7 (495) 123-45-68⟧
⟦PHONE +48 22 123 45 67⟧
⟦PHONE +420 601 123 456⟧
⟦PHONE +972 3-123-4567⟧
⟦PHONE +971 4 123 4567⟧
⟦PHONE +27 21 123 4567⟧
⟦PHONE +254 712 345678⟧
⟦PHONE +15555550123⟧
whatsapp: ⟦PHONE +5511912345678⟧
SMS to ⟦PHONE 447700900123⟧
fax no. ⟦PHONE 555-0142⟧
tel:⟦PHONE +1-201-555-0123⟧
<a href="tel:⟦PHONE +12015550124⟧">call</a>
| Bob | ⟦PHONE 303-555-0150⟧ | ⟦EMAIL bob@example.org⟧ |
Hotline ⟦PHONE 0800 123 4567⟧
You can reach her: phone number ⟦PHONE 01632 960983⟧.
Request from ⟦IP 203.0.113.7⟧ refused
⟦IP 198.51.100.23⟧ - - [04/Nov/2023:12:30:45 +0000] "GET / HTTP/1.1" 200
sshd[88]: Accepted password for root from ⟦IP 192.0.2.44⟧ port 51234 ssh2
ping ⟦IP 8.8.8.8⟧
ssh admin@⟦IP 192.168.1.20⟧
http://⟦IP 10.0.0.5⟧:8080/status
DNS: ⟦IP 1.1.1.1⟧ and ⟦IP 9.9.9.9⟧:53
subnet ⟦IP 10.1.2.0⟧/24
host=⟦IP 172.16.254.1⟧
inet ⟦IP 192.168.0.104⟧ netmask 255.255.255.0
server at ⟦IP 185.199.108.153⟧.
client_ip: "⟦IP 93.184.216.34⟧"
X-Forwarded-For: ⟦IP 203.0.113.195⟧, ⟦IP 70.41.3.18⟧
from ⟦IP 10.0.0.1⟧-⟦IP 10.0.0.20⟧
his address was ⟦IP 23.14.5.9⟧ that day
⟦IP 2001:db8:85a3::8a2e:370:7334⟧
AAAA ⟦IP 2606:2800:220:1:248:1893:25c8:1946⟧
[⟦IP 2001:db8::1⟧]:443
fe80 address ⟦IP fe80::1ff:fe23:4567:890a⟧ on eth0
inet6 ⟦IP fd12:3456:789a:1::1⟧/64
Client ⟦IP 2a00:1450:4001:81b::200e⟧ blocked
Card ⟦CARD 4111 1111 1111 1111⟧ exp 12/26
⟦CARD 4012888888881881⟧
paid with ⟦CARD 5555-5555-5555-4444⟧.
mastercard ⟦CARD 5105105105105100⟧;
Amex ⟦CARD 3782 822463 10005⟧
"pan": "⟦CARD 371449635398431⟧"
⟦CARD 6011 1111 1111 1117⟧ (Discover)
⟦CARD 6011000990139424⟧
JCB ⟦CARD 3530 1113 3330 0000⟧
⟦CARD 3566002020360505⟧
Diners ⟦CARD 3056 930902 5904⟧
⟦CARD 38520000023237⟧
new series ⟦CARD 2223003122003222⟧
id,card⏎1,⟦CARD 4000056655665556⟧⏎2,⟦CARD 5200828282828210⟧
His card number was 4111⏎but the right one ⟦CARD 4242 4242 4242 4242⟧ he kept.
wrapped ⟦CARD 4242 4242⏎4242 4242⟧ here
⟦CARD 4000 0025 0000 3155⟧, cvc 123
UnionPay ⟦CARD 6200000000000005⟧
IBAN ⟦IBAN DE89 3704 0044 0532 0130 00⟧ BIC COBADEFFXXX
⟦IBAN DE89370400440532013000⟧
pay to ⟦IBAN GB29 NWBK 6016 1331 9268 19⟧, please
⟦IBAN FR14 2004 1010 0505 0001 3M02 606⟧
⟦IBAN NL91ABNA0417164300⟧.
Kontonummer: ⟦IBAN AT61 1904 3002 3457 3201⟧
⟦IBAN CH93 0076 2011 6238 5295 7⟧
⟦IBAN ES91 2100 0418 4502 0005 1332⟧
⟦IBAN IT60X0542811101000000123456⟧
⟦IBAN BE68 5390 0754 7034⟧
⟦IBAN PL61 1090 1014 0000 0712 1981 2874⟧
⟦IBAN SE45 5000 0000 0583 9825 7466⟧
⟦IBAN NO93 8601 1117 947⟧
⟦IBAN PT50 0002 0123 1234 5678 9015 4⟧
⟦IBAN IE29 AIBK 9311 5212 3456 78⟧
⟦IBAN MT84MALT011000012345MTLCAST001S⟧
iban=⟦IBAN fi2112345600000785⟧
⟦IBAN TR33 0006 1005 1978 6457 8413 26⟧
wrapped account ⟦IBAN DK50 0040⏎0440 1162 43⟧ in Denmark
SSN ⟦NATIONAL_ID 536-90-4399⟧
Social Security number: ⟦NATIONAL_ID 536904398⟧
her number ⟦NATIONAL_ID 212-09-7694⟧ was leaked
ssn,dob⏎⟦NATIONAL_ID 457-55-5462⟧,1980-02-03
ITIN ⟦NATIONAL_ID 912-70-1234⟧
NI number ⟦NATIONAL_ID AB 12 34 56 C⟧
National Insurance: ⟦NATIONAL_ID JG103759A⟧
DNI ⟦NATIONAL_ID 12345678Z⟧
con NIE ⟦NATIONAL_ID X1234567L⟧ y domicilio en Madrid
N° sécu ⟦NATIONAL_ID 1 84 12 76 451 089 46⟧
⟦NATIONAL_ID 255081416802538⟧
codice fiscale ⟦NATIONAL_ID RSSMRA85T10A562S⟧
C.F.: ⟦NATIONAL_ID MRTMTT25D09F205Z⟧
CPF ⟦NATIONAL_ID 529.982.247-25⟧
portador do CPF n° ⟦NATIONAL_ID 111.444.777-35⟧
身份证 ⟦NATIONAL_ID 11010519491231002X⟧
公民身份号码 ⟦NATIONAL_ID 440524188001010014⟧
AHV-Nr. ⟦NATIONAL_ID 756.9217.0769.85⟧
AVS ⟦NATIONAL_ID 756.1234.5678.97⟧
henkilötunnus ⟦NATIONAL_ID 131052-308T⟧
Rijksregisternummer ⟦NATIONAL_ID 85.07.30-033.28⟧
Steuer-ID: ⟦NATIONAL_ID 86 095 742 719⟧
IdNr. ⟦NATIONAL_ID 47036892816⟧
BSN ⟦NATIONAL_ID 111222333⟧
PESEL: ⟦NATIONAL_ID 44051401359⟧
SIN ⟦NATIONAL_ID 046 454 286⟧
Aadhaar ⟦NATIONAL_ID 2341 2341 2346⟧
Hi Tom, my new address is ⟦EMAIL thomas.b.wright@hotmail.co.uk⟧ and my cell is ⟦PHONE (650) 253-0000⟧.
Bitte überweisen Sie auf ⟦IBAN DE12 5001 0517 0648 4898 90⟧ bis zum 15.03.2024.
Patient: M. Rossi, tel. ⟦PHONE 02 7200 1234⟧
Kundenservice erreichbar unter ⟦PHONE 0221-1234567⟧ (Mo-Fr 8-18 Uhr)
Kontakt: Herr Meier, ⟦PHONE 0511 / 123 45-67⟧, ⟦EMAIL h.meier@firma.example.de⟧
For emergencies: ⟦PHONE +1.650.253.0001⟧
t: ⟦PHONE +44 (0) 1223 763 100⟧ e: ⟦EMAIL enquiries@admin.cam.example.ac.uk⟧
Anschluss ⟦PHONE +49 (0)89 636-48018⟧
téléphone : ⟦PHONE 04 91 12 34 56⟧
Contact M. Dupont au ⟦PHONE 07 81 23 45 67⟧ ou ⟦EMAIL dupont_j@orange.fr⟧
Llámanos al ⟦PHONE +34 91 123 45 67⟧
Bel ⟦PHONE 0800-0432⟧ of mail ⟦EMAIL klant@bank.nl⟧
ring me ⟦PHONE 0161 496 0123⟧
SSN: ⟦NATIONAL_ID 219-09-9999⟧
Employee SSN is ⟦NATIONAL_ID 123 45 6789⟧
cc ⟦CARD 4916338506082832⟧ approved
VISA-⟦CARD 4556 7375 8689 9855⟧
⟦CARD 5425-2334-3010-9903⟧ 04/2026 222
last login: Tue Nov  7 from ⟦IP 84.115.21.7⟧
[error] [client ⟦IP 64.242.88.10⟧:51820] File does not exist
Received: from mail.example.com (mail.example.com [⟦IP 5.9.12.33⟧])
blocked ⟦IP 45.33.32.156⟧/32 at the edge
nc -vz ⟦IP 10.20.30.40⟧ 22
v6: ⟦IP 2a02:8388:e105:db00:e1d7:1aa1:b8b9:1⟧
whois for ⟦EMAIL hostmaster+abuse@isp-example.net⟧,
https://example.com/unsubscribe?email=⟦EMAIL maria.g@example.com⟧&id=77
"e-mail": null, "alt": "⟦EMAIL o.k@ok.example⟧"
IBAN: ⟦IBAN LU28 0019 4006 4475 0000⟧
Iban ⟦IBAN CZ65 0800 0000 1920 0014 5399⟧
NIF ⟦NATIONAL_ID 00000023T⟧
Phone numbers: ⟦PHONE 617-555-0143⟧, ⟦PHONE 617-555-0144⟧ and ⟦PHONE 617-555-0145⟧.
| Tel | ⟦PHONE 0241 8021234⟧ |
Ph: ⟦PHONE 03 9555 1234⟧
Mob ⟦PHONE 0491 570 156⟧
手机 ⟦PHONE 13800138000⟧
電話：⟦PHONE 03-3216-7211⟧
Tel.: ⟦PHONE 22 654 32 10⟧
tlf ⟦PHONE 22 12 34 56⟧
Fax:⟦PHONE 02135551234⟧
Direct dial ⟦PHONE 020 7123 4567 x22⟧
Mobile: ⟦PHONE 98765 43210⟧
""")
"""Lines with something personal in them."""
