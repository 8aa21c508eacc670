"""The templates of the word problems: a table only, read by `problems`.

[id] opens a template, [!id] one that no training data holds. T: a telling, Q: questions divided by
"|", S: the steps (x, y and z are the results of the first, second and third), R: how the numbers
are drawn, in order: a range, or an expression of earlier ones, with "@" and the range it must be
in. Numbers that no telling names only
help to draw the others.
Slots: {a} to {e} numbers; {n} and {m} persons, {he} {He} {his} {him} for the first of them; {t}
things, {f} and {g} food ({f1}, {g1} a single one), {k} a container ({one_k} with its article) and
{ks} several, {p} and {q} animals, {v} a vehicle. Of the words between < and > one is drawn.
"""

TEMPLATES = """
[find]
T: {n} has {a} {t}. {He} <finds/gets/buys/wins/picks up> {b} more.
T: {n} <found/got/bought/won> {b} {t} <today/this morning/this week>. Before that {he} had {a}.
T: <Yesterday/Last week/In the morning> {n} had {a} {t}. <Now/Later> {he} gets {b} {t} from {m}.
T: {m} <gives/sends/brings/lends> {b} {t} to {n}, who already has {a}.
T: {n} has {a} {t} and <buys/finds/gets> {b} <new/other/small> ones.
Q: How many {t} does {n} have <now/then/in the end>?
S: a+b
R: a=2-99 b=2-60

[together]
T: {n} has {a} {t}. {m} has {b} {t}.
T: {n} and {m} both have {t}: {n} has {a} and {m} has {b}.
T: {n} keeps {a} {t} at home, and {m} keeps {b}.
T: {n} <got/found/bought> {a} {t}, and {m} <got/found/bought> {b}.
Q: How many {t} do they have <together/in all/altogether>? | How many {t} do {n} and {m} have in \
all?
S: a+b
R: a=2-99 b=2-99

[two-kinds]
T: There are {a} <red/small/old/round> {t} and {b} <blue/big/new/white> ones <on the table/in a \
shop>.
T: <A box/A shop/A room> has {a} <red/small/old> {t} in it and {b} <blue/big/new> ones.
Q: How many {t} are there <in all/altogether/in total>? | How many {t} is that?
S: a+b
R: a=2-99 b=2-99

[longer]
T: A <red/green/new> rope is {a} metres long. A <blue/white/black> one is {b} metres longer.
T: A <blue/white/black> rope is {b} metres longer than a red one. The red one is {a} metres long.
Q: How long is the longer rope? | How many metres long is the longer one?
S: a+b
R: a=2-90 b=2-40

[shorter]
T: A <street/road/river> is {a} miles long. Another one is {b} miles shorter.
T: One <street/road/river> is {b} miles shorter than another one, which is {a} miles long.
Q: How long is the shorter one? | How many miles long is the shorter one?
S: a-b
R: b=2-40 k=2-60 a=b+k

[!heavier]
T: A sack of rice weighs {a} kilos. A sack of corn weighs {b} kilos more.
T: A sack of corn weighs {b} kilos more than a sack of rice, which weighs {a} kilos.
Q: How many kilos does the corn weigh?
S: a+b
R: a=2-80 b=2-40

[more-than]
T: {n} has {a} {t}. {m} has {b} more than {n}.
T: {m} has {b} more {t} than {n}, who has {a}.
T: {m} has more {t} than {n}: {b} more. {n} has {a} {t}.
Q: How many {t} does {m} have? | Work out how many {t} {m} has.
S: a+b
R: a=5-99 b=2-40

[in-the-field]
T: There are {a} {p} and {b} {q} <in a field/on a farm/in a yard>.
T: A farmer has {a} {p} and {b} {q}.
T: {n} sees {b} {q} in a field. There are {a} {p} too.
Q: How many animals are there <in all/altogether>? | How many animals is that?
S: a+b
R: a=2-90 b=2-90

[get-on]
T: There are {a} people on a {v}. At the next stop {b} more get on.
T: At a stop {b} people get on a {v}. There were {a} people on it before.
T: A {v} with {a} people stops, and {b} people get on.
Q: How many people are on the {v} now? | How many people are now on the {v}?
S: a+b
R: a=5-60 b=2-30

[had-before]
T: {n} gave {b} {t} to {m}. Now {n} has {a} left.
T: After giving {b} {t} to {m}, {n} still has {a}.
T: {n} has {a} {t} left, because {he} gave {b} to {m}.
Q: How many {t} did {n} have at first? | How many {t} did {n} have before?
S: a+b
R: a=3-90 b=2-60

[pages-two-days]
T: {n} read {a} pages on Monday and {b} pages on Tuesday.
T: On Tuesday {n} read {b} pages of a book. The day before, {he} read {a} pages.
T: {n} is reading a book: {a} pages on the first day, {b} pages on the second.
Q: How many pages did {n} read in all? | How many pages is that in all?
S: a+b
R: a=8-99 b=8-99

[older]
T: {n} is {a} years old. {m} is {b} years older.
T: {m} is {b} years older than {n}. {n} is {a}.
T: {n} is {a} years old and has an older friend, {m}, who is {b} years older.
Q: How old is {m}? | What is the age of {m}?
S: a+b
R: a=4-60 b=2-30

[!taller]
T: {n} is {a} centimetres tall. {m} is {b} centimetres taller.
T: {m} is {b} centimetres taller than {n}. {n} is {a} centimetres tall.
Q: How tall is {m}?
S: a+b
R: a=80-150 b=3-40

[give]
T: {n} has {a} {t}. {He} <gives {b} of them to {m}/loses {b} of them/sells {b} of them/gives {b} \
away>.
T: {n} <gives/sends/sells/brings> {b} {t} to {m}. Before that {he} had {a}.
T: {m} wants some {t}. {n}, who has {a}, gives {b} of them away.
T: {n} had {a} {t}, but {b} of them <are lost/broke/fell into a river/are old and thrown away>.
Q: How many {t} does {n} have <left/now>? | How many {t} are left?
S: a-b
R: b=2-40 k=2-60 a=b+k

[eat]
T: {n} <buys/has/brings> {a} {f}. The children eat {b} of them.
T: The children eat {b} {f}. {n} had <brought/bought/got> {a}.
T: There were {a} {f} on the table, but {n} ate {b}.
Q: How many {f} are left? | How many {f} are there now?
S: a-b
R: b=2-40 k=2-50 a=b+k

[shop-sells]
T: A shop has {a} {t}. People buy {b} of them.
T: People buy {b} {t} in a shop, which had {a} <in the morning/before/at first>.
Q: How many {t} are left <in the shop/there>? | How many {t} does the shop have now?
S: a-b
R: b=2-60 k=2-80 a=b+k

[room-for]
T: A <shelf/box/bag> has room for {a} {t}. {b} {t} are <in it/there> now.
T: {b} {t} are in a <shelf/box/bag> that can hold {a}.
Q: How many more {t} <fit in/can be put in>? | For how many more {t} is there room?
S: a-b
R: b=2-60 k=2-60 a=b+k

[!flew]
T: {a} crows sat on a roof. {b} of them flew away.
T: {b} of the {a} crows on a roof flew away.
Q: How many crows still sit on the roof?
S: a-b
R: b=2-30 k=2-40 a=b+k

[fewer-than]
T: {n} has {a} {t}. {m} has {b} fewer than {n}.
T: {m} has {b} fewer {t} than {n}, who has {a}.
T: {n} has {a} {t}, and {m} has not so many: {b} fewer.
Q: How many {t} does {m} have? | Work out how many {t} {m} has.
S: a-b
R: b=2-30 k=3-60 a=b+k

[difference]
T: {n} has {a} {t}. {m} has {b} {t}.
T: {m} has {b} {t}, but {n} has {a}.
T: {n} counts {a} {t}, and {m} counts {b}.
Q: How many more {t} does {n} have than {m}? | How many fewer {t} does {m} have than {n}?
S: a-b
R: b=2-60 k=2-40 a=b+k

[get-off]
T: There are {a} people on a {v}. At the next stop {b} of them get off.
T: At a stop {b} people get off a {v}. There were {a} people on it before.
T: A {v} with {a} people stops, and {b} people get off.
Q: How many people are on the {v} now? | How many people are left on the {v}?
S: a-b
R: b=2-50 k=3-90 a=b+k

[need]
T: {n} wants a <kite/hat/lamp/doll/book> that costs {a} coins. {He} has {b} coins.
T: {n} has {b} coins. A <kite/hat/lamp/doll/book> costs {a} coins.
T: A kite costs {a} coins, but {n} has only {b}.
Q: How many more coins does {n} need? | How many coins are missing?
S: a-b
R: b=2-60 k=2-60 a=b+k

[pages-left]
T: A book has {a} pages. {n} has read {b} pages.
T: {n} has read {b} pages of a book with {a} pages.
T: {n} is on page {b} of a book. The book has {a} pages.
Q: How many pages are left? | How many pages must {n} still read?
S: a-b
R: b=5-120 k=5-150 a=b+k

[younger]
T: {n} is {a} years old. {m} is {b} years younger.
T: {m} is {b} years younger than {n}. {n} is {a}.
T: {n} is {a} years old and {m} is younger than that by {b} years.
Q: How old is {m}? | What is the age of {m}?
S: a-b
R: b=2-30 k=3-50 a=b+k

[lost]
T: {n} had {a} {t}. {He} lost some of them and has {b} left.
T: {n} has only {b} {t} left of the {a} {t} that {he} had.
T: In the morning {n} had {a} {t}, in the evening {b}. The others are lost.
Q: How many {t} did {n} lose? | How many {t} are lost?
S: a-b
R: b=2-60 k=2-40 a=b+k

[!free-chairs]
T: There are {a} chairs in a hall. People sit on {b} of them.
T: People sit on {b} chairs in a hall that has {a} chairs.
Q: How many chairs are free?
S: a-b
R: b=5-80 k=3-60 a=b+k

[!wind]
T: There were {a} plums on a tree. The wind blew down {b} of them.
T: The wind blew down {b} of the {a} plums on a tree.
Q: How many plums are still on the tree?
S: a-b
R: b=3-40 k=5-60 a=b+k

[boxes]
T: {n} has {a} {ks} with {b} {t} in each.
T: There are {b} {t} in each {k}. {n} has {a} {ks}.
T: {n} <fills/packs/carries> {a} {ks}. In each {k} there are {b} {t}.
T: <In a shop/In a room/On a cart> there are {a} {ks} of {b} {t} each.
Q: How many {t} <are there in all/is that/are in the {ks} in all>?
S: a*b
R: a=2-20 b=2-30

[weigh]
T: {one_k} of sand weighs {b} kilos. {n} carries {a} of them.
T: {n} has {a} {ks} of sand. Each weighs {b} kilos.
Q: How many kilos is that in all? | How much do the {ks} weigh together?
S: a*b
R: a=2-12 b=2-30

[walk-days]
T: {n} <walks/rides/runs> {b} miles <a day/every day> for {a} days.
T: For {a} days {n} <walks/rides/runs> {b} miles <a day/every day>.
Q: How many miles is that <in all/altogether>? | How far does {n} go?
S: a*b
R: a=2-12 b=2-30

[price]
T: {f1} costs {b} coins. {n} buys {a} {f}.
T: {n} buys {a} {f}. Each one costs {b} coins.
T: At the shop {n} takes {a} {f} for {b} coins each.
Q: How many coins does {n} pay? | How much does {n} pay? | How many coins is that in all?
S: a*b
R: a=2-15 b=2-25

[rows]
T: A garden has {a} rows of flowers, and each row has {b} flowers.
T: There are {b} flowers in each row of a garden. The garden has {a} rows.
T: {n} plants {a} rows of flowers with {b} flowers in each row.
Q: How many flowers are in the garden? | How many flowers is that?
S: a*b
R: a=2-20 b=2-30

[each-day]
T: {n} reads {b} pages every day. {He} does so for {a} days.
T: For {a} days {n} reads {b} pages a day.
T: Every day {n} reads {b} pages, and after {a} days the book is read.
Q: How many pages does {n} read? | How many pages is that in all?
S: a*b
R: a=2-20 b=3-40

[wheels]
T: A cart has {b} wheels. A farmer has {a} carts.
T: A farmer has {a} carts with {b} wheels each.
Q: How many wheels do the carts have? | How many wheels are there?
S: a*b
R: a=2-30 b=2-8

[!speed]
T: A train goes {b} miles in an hour. It goes on for {a} hours.
T: For {a} hours a train goes {b} miles an hour.
Q: How many miles does the train go?
S: a*b
R: a=2-12 b=10-90

[times-as-many]
T: {n} has {b} {t}. {m} has {a} times as many.
T: {m} has {a} times as many {t} as {n}, who has {b}.
Q: How many {t} does {m} have? | Work out how many {t} {m} has.
S: a*b
R: a=3-9 b=2-40

[twice]
T: {n} has {b} {t}. {m} has twice as many.
T: {m} has twice as many {t} as {n}. {n} has {b}.
Q: How many {t} does {m} have?
S: 2*b
R: b=3-99

[share]
T: {n} shares {a} {f} among {b} friends. All get the same.
T: {b} friends share {a} {f}, and each gets as many as the others.
T: {n} gives {a} {f} to {b} friends in equal parts.
Q: How many {f} does each friend get? | How many {f} are there for each friend?
S: a/b
R: b=2-12 k=2-15 a=b*k

[pack]
T: {n} packs {a} {t} into {ks}. Each {k} holds {b}.
T: A {k} holds {b} {t}. {n} has {a} {t} to pack.
T: {n} has {a} {t} and puts {b} of them into each {k}.
Q: How many {ks} does {n} <need/fill>? | How many {ks} are <needed/filled>?
S: a/b
R: b=2-12 k=2-20 a=b*k

[pour]
T: {n} pours {a} litres of <water/milk/oil> into {b} jugs, the same into each.
T: {b} jugs hold {a} litres of <water/milk/oil>. All are of the same size.
Q: How many litres are in each jug? | How many litres does one jug hold?
S: a/b
R: b=2-9 k=2-15 a=b*k

[in-rows]
T: {n} puts {a} {t} in {b} rows of the same length.
T: {a} {t} stand in {b} equal rows.
Q: How many {t} are in each row? | How many {t} are there in one row?
S: a/b
R: b=2-12 k=2-15 a=b*k

[half]
T: {n} has {a} {t}. {He} gives half of them to {m}.
T: {n} gives half of {his} {t} to {m}. {He} had {a}.
Q: How many {t} does {m} get? | How many {t} does {n} give away?
S: a/2
R: k=2-60 a=k*2

[!one-price]
T: {n} pays {a} coins for {b} {f}. All {f} cost the same.
T: {b} {f} cost {a} coins.
T: {n} buys {b} {f} and pays {a} coins.
Q: How many coins does one of the {f} cost? | What is the price of one of the {f}?
S: a/b
R: b=2-12 k=2-20 a=b*k

[!rope]
T: A rope is {a} metres long. {n} cuts it into {b} equal pieces.
T: {n} cuts a rope of {a} metres into {b} equal pieces.
Q: How many metres long is each piece?
S: a/b
R: b=2-9 k=2-15 a=b*k

[receiver]
T: {n} has {a} {t} and {m} has {b}. {n} gives {c} {t} to {m}.
T: {n} gives {c} of {his} {a} {t} to {m}, who has {b}.
Q: How many {t} does {m} have now?
S: b+c
R: c=2-20 k=2-40 a=c+k b=2-50

[giver]
T: {n} has {a} {t} and {m} has {b}. {n} gives {c} {t} to {m}.
T: {n} gives {c} of {his} {a} {t} to {m}, who has {b}.
Q: How many {t} does {n} have now? | How many {t} does {n} have left?
S: a-c
R: c=2-20 k=2-40 a=c+k b=2-50

[find-give]
T: {n} has {a} {t}. {He} <finds/buys/gets> {b} more and then <gives {c} to {m}/sells {c}/loses {c}>.
T: {n} <finds/buys/makes> {b} {t} and puts them with {his} {a} {t}. Then {m} takes {c} of them.
T: First {n} had {a} {t}, then {he} got {b} from a friend. Later {he} <lost/sold/gave away> {c}.
Q: How many {t} does {n} have <now/in the end/then>?
S: a+b; x-c
R: a=5-60 b=2-40 c=2-9

[give-find]
T: {n} has {a} {t}. {He} <gives {b} to {m}/sells {b}/loses {b}> and then <finds/buys/gets> {c} more.
T: {n} had {a} {t} and <lost/sold/gave away> {b} of them. Today {he} gets {c} new ones.
T: From {his} {a} {t} {n} takes {b} and gives them to {m}, who gives {him} {c} others.
Q: How many {t} does {n} have <now/in the end/then>?
S: a-b; x+c
R: b=2-30 k=2-50 a=b+k c=2-40

[boxes-more]
T: {n} has {a} {ks} with {b} {t} in each and {c} more {t} on the table.
T: There are {c} {t} on the table. {n} also has {a} {ks} with {b} {t} in each {k}.
T: {n} fills {a} {ks} with {b} {t} each. Then {c} {t} are left over.
Q: How many {t} does {n} have? | How many {t} are there in all?
S: a*b; x+c
R: a=2-12 b=2-20 c=2-40

[boxes-less]
T: {n} has {a} {ks} with {b} {f} in each. {He} eats {c} of the {f}.
T: {n} eats {c} {f}. {He} had {a} {ks} with {b} {f} in each {k}.
T: There are {b} {f} in each of {a} {ks}. {c} of the {f} are bad and {n} throws them away.
Q: How many {f} are left? | How many {f} does {n} have left?
S: a*b; x-c
R: a=3-12 b=3-20 c=2-8

[change]
T: {n} buys {a} {f} for {b} coins each. {He} pays with {c} coins.
T: {n} has {c} coins. {He} buys {a} {f}, and each costs {b} coins.
T: {f1} costs {b} coins. {n}, who has {c} coins, buys {a} {f}.
Q: How many coins does {n} have left? | How many coins does {n} get back?
S: a*b; c-x
R: a=2-9 b=2-12 k=2-40 c=a*b+k

[more-together]
T: {n} has {a} {t}. {m} has {b} more than {n}.
T: {m} has {b} more {t} than {n}, and {n} has {a}.
Q: How many {t} do they have together? | How many {t} do {n} and {m} have in all?
S: a+b; a+x
R: a=3-60 b=2-30

[fewer-together]
T: {n} has {a} {t}. {m} has {b} fewer than {n}.
T: {m} has {b} fewer {t} than {n}, and {n} has {a}.
Q: How many {t} do they have together? | How many {t} do {n} and {m} have in all?
S: a-b; a+x
R: b=2-20 k=3-40 a=b+k

[times-together]
T: {n} has {a} {t}. {m} has {b} times as many.
T: {m} has {b} times as many {t} as {n}, and {n} has {a}.
Q: How many {t} do they have together? | How many {t} do {n} and {m} have in all?
S: a*b; a+x
R: a=2-30 b=3-8

[find-share]
T: {n} has {a} {f} and gets {b} more. Then {he} shares them all among {c} friends.
T: {n} shares {his} {f} among {c} friends. {He} had {a} and got {b} more from {m}.
Q: How many {f} does each friend get?
S: a+b; x/c
R: c=2-9 k=3-15 a=2-60 b=c*k-a@2-40

[eat-pack]
T: {n} has {a} {f}. {He} eats {b} and packs the others into {c} {ks}, the same number in each.
T: Of {a} {f} {n} eats {b}. {He} puts the rest into {c} {ks} in equal parts.
Q: How many {f} are in each {k}? | How many {f} does {n} put into each {k}?
S: a-b; x/c
R: c=2-9 k=2-12 b=2-15 a=c*k+b

[two-prices]
T: {n} buys {a} {f} for {b} coins each and a hat for {c} coins.
T: {n} pays {c} coins for a hat. {He} also buys {a} {f}, and each costs {b} coins.
T: A hat costs {c} coins and {f1} costs {b}. {n} buys one hat and {a} {f}.
Q: How many coins does {n} pay? | How much does {n} pay in all?
S: a*b; x+c
R: a=2-9 b=2-12 c=5-60

[off-on]
T: There are {a} people on a {v}. At a stop {b} get off and {c} get on.
T: At a stop {b} people leave a {v} and {c} new ones come in. There were {a} people before.
Q: How many people are on the {v} now? | How many people are now on the {v}?
S: a-b; x+c
R: b=2-20 k=2-40 a=b+k c=2-30

[on-off]
T: There are {a} people on a {v}. At a stop {b} get on and {c} get off.
T: At a stop {b} people get on a {v} with {a} people. At the next stop {c} get off.
Q: How many people are on the {v} now? | How many people are left on the {v}?
S: a+b; x-c
R: a=10-90 b=2-40 c=2-12

[three-days]
T: {n} read {a} pages on Monday, {b} on Tuesday and {c} on Wednesday.
T: On Wednesday {n} read {c} pages. {He} read {a} pages on Monday and {b} on Tuesday.
T: {n} wrote {a} lines in the morning, {b} at noon and {c} in the evening.
Q: How many is that in all? | How many are they all together?
S: a+b; x+c
R: a=5-60 b=5-60 c=5-60

[book-two-days]
T: A book has {a} pages. {n} read {b} pages yesterday and {c} today.
T: {n} read {b} pages yesterday and {c} pages today. The whole book has {a} pages.
Q: How many pages are left? | How many pages must {n} still read?
S: a-b; x-c
R: b=5-50 c=5-50 k=5-90 a=b+c+k

[gives-twice]
T: {n} has {a} {t}. {He} <gives/sells> {b} to {m} and {c} to <a friend/the teacher/a girl>.
T: {n} gave {b} {t} to {m} and lost {c}. At first {he} had {a}.
Q: How many {t} does {n} have left? | How many {t} are left?
S: a-b; x-c
R: b=2-40 c=2-40 k=2-60 a=b+c+k

[!barrel]
T: A barrel holds {a} litres of oil. A cook uses {b} litres, and {c} litres are sold.
T: A cook uses {b} litres of oil from a barrel and sells {c}. The barrel held {a} litres.
Q: How many litres of oil are left?
S: a-b; x-c
R: b=2-40 c=2-40 k=2-60 a=b+c+k

[save]
T: {n} has {a} coins. {He} saves {b} coins a week for {c} weeks.
T: Every week {n} saves {b} coins. {He} has {a} coins now and goes on for {c} weeks.
T: For {c} weeks {n} puts {b} coins a week into a box. There were {a} coins in it before.
Q: How many coins does {n} have then? | How many coins does {n} have after that?
S: b*c; a+x
R: a=5-80 b=2-15 c=2-12

[need-two]
T: A kite costs {a} coins. {n} has {b} coins and gets {c} more from {m}.
T: {n} has {b} coins, and {m} gives {him} {c} more. {He} wants a kite for {a} coins.
Q: How many more coins does {n} need? | How many coins are still missing?
S: b+c; a-x
R: b=2-40 c=2-30 k=2-40 a=b+c+k

[sold]
T: A farmer has {a} {p} and {b} {q}. He sells {c} of the animals.
T: A farmer sells {c} animals. Before that he had {a} {p} and {b} {q}.
Q: How many animals does he have left? | How many animals does the farmer have now?
S: a+b; x-c
R: a=5-60 b=5-60 c=2-9

[trees-fall]
T: A garden has {a} rows of trees with {b} trees in each. {c} trees fall in a storm.
T: In a storm {c} trees of a garden fall. It had {a} rows with {b} trees each.
Q: How many trees are left? | How many trees still stand?
S: a*b; x-c
R: a=3-15 b=3-20 c=2-8

[seats]
T: A hall has {a} rows of {b} seats. People sit on {c} of them.
T: People sit on {c} seats of a hall. It has {a} rows with {b} seats each.
Q: How many seats are free? | How many seats are still free?
S: a*b; x-c
R: a=3-15 b=3-20 c=2-8

[hens]
T: A farmer has {a} hens, and each lays {b} eggs. He eats {c} of the eggs.
T: A farmer eats {c} eggs. He has {a} hens that laid {b} eggs each.
Q: How many eggs are left? | How many eggs can he sell?
S: a*b; x-c
R: a=3-15 b=2-9 c=2-5

[bunches]
T: {n} picks {a} red and {b} white flowers and makes bunches of {c} flowers.
T: {n} makes bunches of {c} flowers from {a} red and {b} white ones.
Q: How many bunches does {n} make? | How many bunches are there?
S: a+b; x/c
R: c=2-9 k=3-12 a=3-60 b=c*k-a@3-60

[there-and-back]
T: It is {a} miles to the town. {n} goes there and back {b} times.
T: {b} times {n} goes to the town and back. The way to the town is {a} miles long.
Q: How many miles is that in all? | How many miles does {n} go?
S: 2*a; x*b
R: a=2-30 b=2-9

[!half-more]
T: {n} has {a} {t}. {He} gives half of them away and then finds {b} more.
T: {n} gave away half of {his} {a} {t}. Now {m} gives {him} {b} new ones.
Q: How many {t} does {n} have now?
S: a/2; x+b
R: k=2-40 a=k*2 b=2-30

[age-later]
T: {n} is {a} years old. {m} is {b} years older.
T: {m} is {b} years older than {n}, who is {a}.
Q: How old will {m} be in {c} years? | What will the age of {m} be after {c} years?
S: a+b; x+c
R: a=4-50 b=2-20 c=2-20

[teams]
T: There are {a} girls and {b} boys in a school. They make teams of {c}.
T: A school makes teams of {c} children. There are {a} girls and {b} boys.
Q: How many teams are there? | How many teams do they make?
S: a+b; x/c
R: c=3-11 k=3-15 a=5-90 b=c*k-a@5-90

[bags-share]
T: {n} has {a} {ks} with {b} {f} in each. {c} children share all of them equally.
T: {c} children share {a} {ks} of {f}. There are {b} {f} in each {k}.
Q: How many {f} does each child get?
S: a*b; x/c
R: c=2-6 a=2-12 b=2-20

[class-ill]
T: In a class there are {a} tables with {b} children at each. Today {c} children are ill.
T: Today {c} children of a class are ill. The class has {a} tables with {b} children at each.
Q: How many children are at school today? | How many children of the class are not ill?
S: a*b; x-c
R: a=3-10 b=2-6 c=2-5

[bags-compare]
T: {n} has {a} {ks} with {b} {t} in each. {m} has {c} {t}.
T: {m} has {c} {t}. {n} has {a} {ks}, and there are {b} {t} in each {k}.
Q: How many more {t} does {n} have than {m}?
S: a*b; x-c
R: a=3-12 b=5-20 c=3-14

[day-and-night]
T: Every day {n} walks {a} miles in the morning and {b} miles in the evening.
T: {n} walks {a} miles each morning and {b} miles each evening.
Q: How many miles does {n} walk in {c} days? | How many miles is that in {c} days?
S: a+b; x*c
R: a=2-15 b=2-15 c=2-14

[birds]
T: There are {a} birds in a tree. {b} of them fly away and {c} others come.
T: {b} of the {a} birds in a tree fly away. Then {c} new birds come.
Q: How many birds are in the tree now? | How many birds are there in the end?
S: a-b; x+c
R: b=2-20 k=2-30 a=b+k c=2-20

[weeks-to-save]
T: A drum costs {a} coins. {n} has {b} coins and saves {c} coins every week.
T: {n} saves {c} coins a week for a drum that costs {a}. {He} already has {b} coins.
Q: How many weeks must {n} save? | After how many weeks can {n} buy the drum?
S: a-b; x/c
R: c=2-12 k=2-15 b=2-30 a=c*k+b

[chain-more]
T: {n} has {a} {t}. {m} has {b} more than {n}. A friend has {c} more than {m}.
T: A friend has {c} more {t} than {m}, and {m} has {b} more than {n}. {n} has {a}.
Q: How many {t} does the friend have?
S: a+b; x+c
R: a=3-40 b=2-20 c=2-20

[chain-mixed]
T: {n} has {a} {t}. {m} has {b} more than {n}. A friend has {c} fewer than {m}.
T: A friend has {c} fewer {t} than {m}, and {m} has {b} more than {n}. {n} has {a}.
Q: How many {t} does the friend have?
S: a+b; x-c
R: a=10-50 b=2-20 c=2-9

[!tank]
T: A tank holds {a} litres of water. {n} takes out {b} buckets with {c} litres in each.
T: {n} takes {b} buckets of water out of a tank, {c} litres in each. The tank held {a} litres.
Q: How many litres are left in the tank?
S: b*c; a-x
R: b=2-9 c=2-12 k=5-90 a=b*c+k

[!trays]
T: A baker bakes {a} trays of rolls with {b} rolls on each. He sells {c} rolls.
T: A baker sells {c} rolls. He had baked {a} trays with {b} rolls on each.
Q: How many rolls does the baker have left?
S: a*b; x-c
R: a=3-12 b=5-20 c=3-14

[!stamps]
T: {n} has {a} red stamps and {b} blue stamps. {He} puts {c} stamps on each page of a book.
T: {n} puts {c} stamps on each page. {He} has {a} red ones and {b} blue ones.
Q: How many pages does {n} need for the stamps?
S: a+b; x/c
R: c=3-10 k=3-12 a=5-60 b=c*k-a@5-60

[!to-school]
T: It is {a} miles from the house to the mill and {b} miles from the mill to the town.
T: From the mill to the town it is {b} miles, and from the house to the mill it is {a} miles.
Q: {n} goes from the house past the mill to the town {c} times. How many miles is that?
S: a+b; x*c
R: a=2-20 b=2-20 c=2-9

[!milk]
T: A cow gives {b} litres of milk a day, and a farmer has {a} cows. He needs {c} litres himself.
T: A farmer needs {c} litres of milk. He has {a} cows, and each gives {b} litres a day.
Q: How many litres of milk can he sell each day?
S: a*b; x-c
R: a=3-20 b=4-15 c=2-10

[!younger-sum]
T: {n} is {a} years old. {His} sister is {b} years younger.
T: The sister of {n} is {b} years younger than {he} is. {n} is {a}.
Q: How old are the two together?
S: a-b; a+x
R: b=2-9 k=2-30 a=b+k

[mine-left]
T: I have {a} {t} and give {b} of them to {m}.
T: I had {a} {t}. Now I give {b} to my friend {m}.
Q: How many {t} do I have left? | How many {t} do I have now? | How many are left?
S: a-b
R: b=2-40 k=2-60 a=b+k

[mine-more]
T: I have {a} {t}, and {m} gives me {b} more.
T: {m} gives me {b} {t}. I already had {a}.
Q: How many {t} do I have now? | How many {t} is that in all?
S: a+b
R: a=2-80 b=2-60

[ours]
T: I have {a} {t} and my sister has {b}.
T: My brother has {b} {t}, and I have {a}.
Q: How many {t} do we have together? | How many is that in all?
S: a+b
R: a=2-80 b=2-80

[in-boxes]
T: A {k} holds {b} {t}.
T: There are {b} {t} in one {k}.
Q: How many {t} are in {a} {ks}? | How many {t} do {a} {ks} hold?
S: a*b
R: a=2-20 b=2-30

[mine-buy]
T: I have {c} coins and buy {a} {f} for {b} coins each.
T: I buy {a} {f}, and each costs {b} coins. I had {c} coins.
Q: How many coins do I have left? | How many coins are left?
S: a*b; c-x
R: a=2-9 b=2-12 k=2-40 c=a*b+k

[cost-of]
T: {f1} costs {b} coins.
T: The price of {f1} is {b} coins.
Q: How much do {a} {f} cost? | How many coins do I pay for {a} {f}?
S: a*b
R: a=2-20 b=2-25

[!mine-eat]
T: I have {a} {ks} with {b} {f} in each, and I eat {c} of the {f}.
T: Today I eat {c} {f}. I had {a} {ks} with {b} {f} in each {k}.
Q: How many {f} do I have left?
S: a*b; x-c
R: a=3-12 b=3-20 c=2-8

[two-buys]
T: {n} buys {a} {f} for {b} coins each and {c} {g} for {d} coins each.
T: {f1} costs {b} coins and {g1} costs {d}. {n} buys {a} {f} and {c} {g}.
T: At the shop {n} takes {c} {g} for {d} coins each and {a} {f} for {b} coins each.
Q: How many coins does {n} pay in all? | How much does {n} pay?
S: a*b; c*d; x+y
R: a=2-9 b=2-12 c=2-9 d=2-12

[boxes-eat-share]
T: {n} has {a} {ks} with {b} {f} in each. {He} eats {c} and shares the others among {d} friends.
T: {n} shares {f} among {d} friends. {He} had {a} {ks} with {b} in each but ate {c}.
Q: How many {f} does each friend get?
S: a*b; x-c; y/d
R: d=2-8 k=2-12 a=2-9 b=3-12 c=a*b-d*k@2-20

[more-give-away]
T: {n} has {a} {t}. {m} has {b} more than {n}. Together they give {c} away.
T: {m} has {b} more {t} than {n}, who has {a}. The two give {c} {t} away.
Q: How many {t} do they have left together?
S: a+b; a+x; y-c
R: a=5-40 b=2-20 c=2-10

[times-share]
T: {n} has {a} {f}. {m} has {b} times as many. They share all of them among {c} children.
T: {m} has {b} times as many {f} as {n}, who has {a}. {c} children share them all.
Q: How many {f} does each child get?
S: a*b; a+x; y/c
R: c=2-6 k=3-40 a=3-20 b=3-6

[earn-spend]
T: {n} earns {a} coins a day for {b} days. Then {he} spends {c} coins and finds {d}.
T: For {b} days {n} earns {a} coins a day. After that {he} pays {c} coins for a lamp and then \
finds {d}.
Q: How many coins does {n} have in the end? | How many coins does {n} have then?
S: a*b; x-c; y+d
R: a=4-20 b=2-9 c=2-7 d=2-30

[three-stops]
T: There are {a} people on a {v}. At the first stop {b} get off, at the second {c} get on, and at \
the third {d} get off.
T: A {v} starts with {a} people. {b} get off, then {c} get on, then {d} get off.
Q: How many people are on the {v} now? | How many people are left on the {v}?
S: a-b; x+c; y-d
R: b=2-15 k=6-40 a=b+k c=2-20 d=2-6

[trip]
T: {a} classes with {b} children each and {c} teachers go on a trip. A bus takes {d} people.
T: A bus takes {d} people. On a trip there are {c} teachers and {a} classes with {b} children each.
Q: How many buses do they need? | How many buses are needed?
S: a*b; x+c; y/d
R: d=8-40 k=2-9 a=2-5 b=8-30 c=d*k-a*b@2-20

[red-and-yellow]
T: A garden has {a} rows of {b} red roses and {c} rows of {d} yellow roses.
T: {n} plants {a} rows with {b} red roses each and {c} rows with {d} yellow roses each.
Q: How many roses are there in all? | How many roses is that?
S: a*b; c*d; x+y
R: a=2-9 b=2-15 c=2-9 d=2-15

[pick-pack]
T: {n} picks {a} apples and {m} picks {b}. {c} of them are bad. They put the good ones into {d} \
{ks}, \
the same number into each.
T: {n} and {m} pick apples: {a} and {b}. They throw {c} bad ones away and fill {d} {ks} equally.
Q: How many apples are in each {k}?
S: a+b; x-c; y/d
R: d=2-8 k=3-14 a=5-50 b=5-50 c=a+b-d*k@2-12

[half-eat]
T: {n} has {a} {f} and {m} has {b}. They put them together and give half of them away. Then they \
eat {c}.
T: Of all their {f}, {a} from {n} and {b} from {m}, they give half away and eat {c}.
Q: How many {f} do they have left?
S: a+b; x/2; y-c
R: k=8-40 a=5-50 b=k*2-a@3-50 c=2-6

[buy-two-change]
T: {n} has {c} coins. {He} buys {a} {f} for {b} coins each and a book for {d} coins.
T: A book costs {d} coins and {f1} costs {b}. {n} has {c} coins and buys one book and {a} {f}.
Q: How many coins does {n} have left?
S: a*b; x+d; c-y
R: a=2-8 b=2-9 d=5-30 k=2-40 c=a*b+d+k

[compare-bags]
T: {n} has {a} {ks} with {b} {t} in each, and {m} has {c} {ks} with {d} {t} in each.
T: {m} has {c} {ks} of {d} {t}, while {n} has {a} {ks} of {b} {t}.
Q: How many more {t} does {n} have than {m}?
S: a*b; c*d; x-y
R: c=2-6 d=2-9 k=1-5 l=1-9 a=c+k b=d+l

[unit-price]
T: {b} {f} cost {a} coins. {n} buys {c} of them.
T: {n} buys {c} {f}. At the market {b} {f} cost {a} coins.
Q: How many coins does {n} pay? | How much does {n} pay?
S: a/b; x*c
R: b=2-9 k=2-12 a=b*k c=2-12

[one-weighs]
T: {b} {t} weigh {a} grams. All of them weigh the same.
T: {n} has {b} {t} of one kind, and they weigh {a} grams.
Q: How many grams does one of them weigh? | What is the weight of one of the {t}?
S: a/b
R: b=2-12 k=2-20 a=b*k

[towers]
T: A tower is {a} metres tall. Another one is {b} metres taller.
T: One tower is {b} metres taller than another one, which is {a} metres tall.
Q: How many metres are the two towers together? | How tall are both towers together?
S: a+b; a+x
R: a=5-90 b=2-30

[tree-grows]
T: A tree is {a} metres tall. Every year it gets {b} metres taller.
T: Every year a tree gets {b} metres taller. It is {a} metres tall now.
Q: How tall is the tree after {c} years? | How many metres tall will the tree be in {c} years?
S: b*c; a+x
R: a=2-30 b=2-5 c=2-9

[lamp-oil]
T: A lamp burns {b} litres of oil a week, and a house has {a} lamps.
T: A house has {a} lamps, and each burns {b} litres of oil a week.
Q: How many litres of oil does the house need in {c} weeks? | How many litres is that for {c} weeks?
S: a*b; x*c
R: a=2-12 b=2-9 c=2-8

[goat-food]
T: A goat eats {b} carrots a day, and {n} has {a} goats. There are {c} carrots in the barn.
T: {n} has {c} carrots in a barn and {a} goats. Each of them eats {b} carrots a day.
Q: How many more carrots are needed for one day? | How many carrots are missing for one day?
S: a*b; x-c
R: a=3-15 b=3-12 c=2-8

[big-and-small]
T: A big {k} holds {b} {t} and a small one holds {d}. {n} has {a} big ones and {c} small ones.
T: {n} has {a} big {ks} and {c} small ones. A big one holds {b} {t} and a small one {d}.
Q: How many {t} can {n} put into them? | How many {t} do they hold in all?
S: a*b; c*d; x+y
R: a=2-9 b=6-15 c=2-9 d=2-6

[legs]
T: A table has {b} legs and a stool has {d}. There are {a} tables and {c} stools in a room.
T: There are {a} tables and {c} stools. Each table has {b} legs, and each stool has {d}.
Q: How many legs are there in all? | How many legs is that?
S: a*b; c*d; x+y
R: a=2-15 b=3-8 c=2-15 d=2-5

[further]
T: The bridge is {a} miles from the lake, and the hill is {b} miles further on.
T: From the lake to the bridge it is {a} miles. The hill is {b} miles behind the bridge.
Q: How many miles is it from the lake to the hill? | {n} goes from the lake to the hill. How many \
miles is that?
S: a+b
R: a=2-40 b=2-40

[album]
T: {n} has {a} photos and puts {c} of them on each page of a book.
T: {n} puts {c} photos on each page of a book. {He} has {a} photos.
Q: How many pages does {n} need? | How many pages does {n} fill?
S: a/c
R: c=2-12 k=2-20 a=c*k

[fence]
T: A fence has {a} boards. {n} takes away {b} bad ones and puts {c} good ones there.
T: {n} takes {b} bad boards from a fence of {a} boards. {He} puts {c} new ones there.
Q: How many boards does the fence have now? | How many boards does the fence have in the end?
S: a-b; x+c
R: b=2-20 k=5-60 a=b+k c=2-30

[load-cart]
T: A cart carries {a} kilos of sand. {n} loads {b} more {ks} with {c} kilos in each.
T: {n} loads {b} {ks} of sand on a cart, {c} kilos in each. There were {a} kilos on it before.
Q: How many kilos of sand are on the cart now? | How many kilos does the cart carry then?
S: b*c; a+x
R: a=5-90 b=2-9 c=2-12

[!days-of-work]
T: {n} makes {a} baskets a day and {m} makes {b}. They work for {c} days and sell {d} baskets.
T: For {c} days {n} makes {a} baskets a day and {m} makes {b}. Then they sell {d} of them.
Q: How many baskets do they have left?
S: a+b; x*c; y-d
R: a=2-12 b=2-12 c=2-9 d=2-7

[rows-and-rows]
T: A room has {a} tables with {b} chairs each and {c} tables with {d} chairs each.
T: {n} puts {b} chairs at each of {a} tables and {d} chairs at each of {c} others.
Q: How many chairs are there in all? | How many chairs is that?
S: a*b; c*d; x+y
R: a=2-9 b=2-9 c=2-9 d=2-9

[stock]
T: A shop has {a} {ks} of {b} {t}. It sells {c} {t} and gets {d} new ones.
T: A shop sells {c} {t} and gets {d} new ones. Before that it had {a} {ks} of {b}.
Q: How many {t} does the shop have <now/in the end>?
S: a*b; x-c; y+d
R: a=2-12 b=3-20 c=2-5 d=2-40

[!plates]
T: {a} boys carry {b} plates each and {c} girls carry {d} plates each.
T: There are {a} boys with {b} plates each. Then {c} girls come with {d} plates each.
Q: How many plates do the children carry in all?
S: a*b; c*d; x+y
R: a=2-9 b=2-9 c=2-9 d=2-9

[!tickets]
T: {a} women and {c} children go to a show. A woman pays {b} coins and a child pays {d}.
T: At a show a woman pays {b} coins and a child pays {d} coins. {a} women and {c} children come.
Q: How many coins do they pay in all?
S: a*b; c*d; x+y
R: a=2-12 b=5-15 c=2-12 d=2-9

[!shelves]
T: A library has {a} shelves with {b} books on each. People borrow {c} books, and {d} new books \
come.
T: People borrow {c} books from a library with {a} shelves of {b} books. Then {d} new books come.
Q: How many books are in the library now?
S: a*b; x-c; y+d
R: a=3-20 b=5-20 c=2-14 d=2-40

[!eggs]
T: {a} hens lay {b} eggs each. {n} breaks {c} eggs and puts the others into boxes of {d}.
T: {n} puts eggs into boxes of {d}. {a} hens laid {b} eggs each, but {c} eggs are broken.
Q: How many boxes does {n} fill?
S: a*b; x-c; y/d
R: d=2-8 k=2-12 a=2-9 b=3-12 c=a*b-d*k@2-20

[!garden-path]
T: A path has {a} stones. {n} takes away {b} old ones, puts {c} new ones there and later breaks {d}.
T: {n} takes {b} old stones from a path of {a} stones. {He} puts {c} new ones there and breaks {d}.
Q: How many good stones does the path have now?
S: a-b; x+c; y-d
R: b=2-15 k=8-50 a=b+k c=2-20 d=2-7
"""

# Sentences with a number that has nothing to do with the question; those of persons are for
# tellings that name them.
NEUTRAL_DISTRACTORS = """
It is {z} degrees outside.
The month has {z} rainy days.
There are {z} clouds in the sky.
The street has {z} houses.
It is {z} o'clock.
The next town has {z} shops.
"""
PERSON_DISTRACTORS = """
{n} has {z} cousins.
{n} lives at number {z}.
{n} gets up at {z} in the morning.
{n} knows {z} songs.
{n} has worn the same hat for {z} days.
{n} sleeps {z} hours a night.
"""
THINGS = """
marbles stamps books pencils stickers cards shells buttons toys balls stones feathers keys pens
ribbons crayons beads rings photos cups plates hats flowers nails bricks candles dolls kites letters
maps bells brushes spoons sticks leaves lamps chairs socks
"""
VEHICLES = "bus train ship boat"
# Persons without a name: as they stand in a sentence, and whether they are women.
ROLES = {
    "the baker": False, "the farmer": False, "the teacher": True, "the king": False,
    "the queen": True, "the old man": False, "the boy": False, "the girl": True,
    "my brother": False, "my sister": True, "my friend": False, "the cook": False,
}  # fmt: skip
FOODS = """
an apple, a pear, an orange, a cake, a plum, a peach, a cookie, a carrot, a bun, a nut, a banana,
a melon, a biscuit, a pie, an egg
"""
CONTAINERS = "box bag basket sack crate"
FARM_ANIMALS = "cows sheep horses goats pigs hens ducks geese"
